"""What a shell offers where the user presses Tab: verbs, options, choices, files, and the names in models and runs.

It must answer within the time of a key: no TensorFlow is loaded, and models are read by `outline`. A name is looked up in the
model or run that stands before it on the line.
"""

from __future__ import annotations

import argparse
import ast
import json
import os
import zipfile
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

from tflite_qdebug.errors import MissingPackageError, QDebugError

__all__ = ["SHELLS", "attach", "complete", "script", "wanted"]

SHELLS = ("bash", "zsh")
_PROGRAM = "tflite-qdebug"
_MODELS = (".tflite",)
_FLOAT_MODELS = (".tflite", ".keras", ".h5", ".hdf5")
_DATA = (".npz", ".npy")
_METRICS = ("top_1", "top_5")
_RANKS = ("sqnr_db", "cosine", "mse", "mre", "chebyshev", "kl", "flips")
_COLUMNS = ("rmse_over_scale", "severity", "rmse", "sqnr_db", "cosine", "mse", "mre", "max_abs_error", "max_inner_error",
            "bias", "range_used", "saturated_low", "saturated_high", "worst_rmse")  # fmt: skip
_KINDS = ("float", "float16", "dynamic_range", "int8", "full_integer", "int16x8")
_KINDS_OF = {"convert": (*_KINDS, "calibrated", "debug", "debug_whole_model"), "qat": ("int8", "full_integer")}
_FORMS = ("dynamic_range", "float16", "int8", "full_integer_uint8", "full_integer_int8", "int16x8")
_TYPES = ("float32", "int8", "uint8", "int16")
_TARGETS = ("accuracy >= float - 0.5%", "sqnr >= 20 dB", "agreement >= 99%", "kl <= 0.05", "size <= int8 + 1%",
            "latency <= 5 ms", "time <= 10 min")  # fmt: skip
_KERNELS = ("auto", "builtin", "reference", "tensorflow", "ai_edge_litert", "tflite_runtime")
_OPERATORS = ("ADD", "AVERAGE_POOL_2D", "BATCH_MATMUL", "CONCATENATION", "CONV_2D", "DEPTHWISE_CONV_2D", "FULLY_CONNECTED",
              "GELU", "HARD_SWISH", "LEAKY_RELU", "LOGISTIC", "MAX_POOL_2D", "MEAN", "MUL", "PAD", "PRELU", "RELU", "RELU6",
              "RESHAPE", "RESIZE_BILINEAR", "RESIZE_NEAREST_NEIGHBOR", "RSQRT", "SOFTMAX", "SPLIT", "SQUARED_DIFFERENCE",
              "STRIDED_SLICE", "SUB", "SUM", "TANH", "TRANSPOSE", "TRANSPOSE_CONV",
              "UNIDIRECTIONAL_SEQUENCE_LSTM")  # fmt: skip
#: What argcomplete calls: ``completer(prefix=, parsed_args=, ...)``.
Completer = Callable[..., Iterable[str]]


def wanted() -> bool:
    """True where a shell, and no user, has called the program."""
    return "_ARGCOMPLETE" in os.environ


def complete(parser: argparse.ArgumentParser) -> None:
    """Answers the shell and ends the process; does nothing where argcomplete is not installed."""
    try:
        import argcomplete
    except ImportError:
        return
    attach(parser)
    argcomplete.autocomplete(parser, always_complete_options=False)


def script(shell: str) -> str:
    """Returns what the shell has to evaluate to complete the program.

    Raises:
        MissingPackageError: Where argcomplete is not installed.
    """
    try:
        import argcomplete
    except ImportError as error:
        raise MissingPackageError(
            "completion needs argcomplete, which is not installed; pip install 'tflite-qdebug[host]'"
        ) from error
    code: str = argcomplete.shellcode([_PROGRAM], shell=shell)  # type: ignore[attr-defined]
    if shell == "zsh":  # whose own completion may not have been switched on yet
        code = code.replace("#compdef", "# for", 1)
        code = f"(( $+functions[compdef] )) || {{ autoload -Uz compinit && compinit; }}\n{code}"
    return code


def attach(parser: argparse.ArgumentParser, verb: str = "") -> None:
    """Gives every argument of a parser and its verbs that takes a value the completer that knows the values."""
    for action in parser._actions:  # noqa: SLF001
        if isinstance(action, argparse._SubParsersAction):  # noqa: SLF001
            for name, child in action.choices.items():
                attach(child, verb or name)
        elif action.nargs != 0 and not action.choices:
            action.completer = _completer(action, verb)  # type: ignore[attr-defined]


def _completer(action: argparse.Action, verb: str) -> Completer:
    name = action.option_strings[0] if action.option_strings else action.dest
    if name == "--kind":
        return _of(_KINDS_OF.get(verb, _KINDS))
    if name == "--output" and verb in ("report", "bundle"):
        return _files((".html",) if verb == "report" else (".pyz",))
    return _BY_NAME.get(name, _none)


# -- values that are known beforehand --------------------------------------------------------------------------------------


def _none(**_: Any) -> list[str]:
    return []


def _of(values: Iterable[str]) -> Completer:
    return lambda **_: list(values)


def _joined(*completers: Completer) -> Completer:
    def completed(**call: Any) -> list[str]:
        return list(dict.fromkeys(value for one in completers for value in one(**call)))

    return completed


# -- files -----------------------------------------------------------------------------------------------------------------


def _files(suffixes: tuple[str, ...] = ()) -> Completer:
    """Returns a completer of folders and of files with one of these endings; of all files without any."""

    def completed(prefix: str = "", **_: Any) -> list[str]:
        return list(_paths(prefix, suffixes))

    return completed


def _paths(prefix: str, suffixes: tuple[str, ...]) -> Iterator[str]:
    folder, slash, start = prefix.rpartition("/")
    place = Path(folder + slash or ".").expanduser()
    try:
        entries = sorted(place.iterdir())
    except OSError:
        return
    for entry in entries:
        if not entry.name.startswith(start) or (entry.name.startswith(".") and not start):
            continue
        if entry.is_dir():
            yield f"{folder}{slash}{entry.name}/"
        elif not suffixes or entry.suffix in suffixes:
            yield f"{folder}{slash}{entry.name}"


def _named_files(suffixes: tuple[str, ...]) -> Completer:
    """Returns a completer of ``PATH`` and ``NAME=PATH``."""

    def completed(prefix: str = "", **_: Any) -> list[str]:
        name, sign, path = prefix.rpartition("=")
        return [name + sign + found for found in _paths(path, suffixes)]

    return completed


def _data(prefix: str = "", **_: Any) -> list[str]:
    """Completes all forms that data may have."""
    head, colon, rest = prefix.partition(":")
    if colon and head == "images":
        return [f"images:{path}" for path in _paths(rest, ("/",))]
    if colon and head == "tfds":
        return []
    return [*("example", "images:", "tfds:"), *_paths(prefix, _DATA), *_functions(prefix)]


def _functions(prefix: str = "", **_: Any) -> list[str]:
    """Completes ``module:function`` from the Python files of the current folder, which are read and not run."""
    module, colon, _start = prefix.partition(":")
    if not colon:
        return [f"{path.stem}:" for path in sorted(Path().glob("*.py")) if path.stem.isidentifier()]
    try:
        tree = ast.parse(Path(module.replace(".", "/") + ".py").read_text(encoding="utf-8"))
    except (OSError, SyntaxError, ValueError):
        return []
    names = [each.name for each in tree.body if isinstance(each, ast.FunctionDef) and not each.name.startswith("_")]
    return [f"{module}:{name}" for name in names]


def _keyed_data(prefix: str = "", parsed_args: Any = None, **_: Any) -> list[str]:
    """Completes ``KEY=DATA`` of a signature."""
    key, sign, data = prefix.partition("=")
    if sign:
        return [f"{key}={value}" for value in _data(data)]
    return [f"{name}=" for name in _signatures(parsed_args=parsed_args)]


# -- names in models and runs ----------------------------------------------------------------------------------------------


def _sources(arguments: Any) -> Iterator[Path]:
    """Yields the models and runs that stand on the line, as far as they are there; a run before its model."""
    fields = vars(arguments) if arguments is not None else {}
    for name in ("run", "saved_run", "model", "quantized_model", "suspects", "quantized", "quantized_form", "float"):
        value = fields.get(name)
        for each in value if isinstance(value, list) else [value]:
            if isinstance(each, str) and each == "example":
                yield Path(__file__).parent.parent / "example" / "model.tflite"
            elif isinstance(each, str):
                path = Path(each.rpartition("=")[2] if name == "quantized" else each).expanduser()
                if path.exists():
                    yield path


def _nodes(parsed_args: Any = None, **_: Any) -> list[str]:
    """Completes names of nodes: of the layers of a run, or of the operators of a ``.tflite``."""
    for path in _sources(parsed_args):
        names = _names_in(path)
        if names:
            return names
    return []


def _names_in(path: Path) -> list[str]:
    file = path / "run.json" if path.is_dir() else path
    try:
        if file.suffix == ".json":
            layers = json.loads(file.read_bytes())["layers"]
            return list(dict.fromkeys(str(layer["node"]) for layer in layers))
        if file.suffix == ".tflite":
            from tflite_qdebug.outline import outline

            return list(outline(file).nodes)
    except (OSError, ValueError, KeyError, TypeError, QDebugError):  # no names there; what is wrong, the verb will say
        pass
    return []


def _tensors(parsed_args: Any = None, **_: Any) -> list[str]:
    """Completes names of inputs and nodes of a ``.tflite``."""
    from tflite_qdebug.outline import outline

    for path in _sources(parsed_args):
        try:
            found = outline(path)
        except QDebugError:
            continue
        return [*(port.name for port in found.inputs), *found.nodes]
    return []


def _signatures(parsed_args: Any = None, **_: Any) -> list[str]:
    from tflite_qdebug.outline import outline

    for path in _sources(parsed_args):
        try:
            return list(outline(path).signatures)
        except QDebugError:
            continue
    return []


def _layers(parsed_args: Any = None, **_: Any) -> list[str]:
    """Completes names of Keras layers of a ``.keras`` file, and of the nodes of a run's suspects."""
    for path in _sources(parsed_args):
        if path.suffix == ".keras":
            try:
                with zipfile.ZipFile(path) as archive:
                    layers = json.loads(archive.read("config.json"))["config"]["layers"]
                return [str(layer["config"]["name"]) for layer in layers]
            except (OSError, ValueError, KeyError, TypeError, zipfile.BadZipFile):
                continue
    return _nodes(parsed_args=parsed_args)


_model = _files(_MODELS)
_float_model = _joined(_of(("example",)), _files(_FLOAT_MODELS))
_run = _files((".json",))
_either = _joined(_float_model, _run)
_library = _joined(_of(("edgetpu",)), _files((".so", ".dylib", ".dll", ".1")))
#: By the first name of an option, or what a positional argument is called; a test sees that none is forgotten.
_BY_NAME: dict[str, Completer] = {
    # models and runs
    "model": _either,
    "models": _joined(_of(("example",)), _named_files(_FLOAT_MODELS)),
    "quantized_model": _model,
    "run": _run,
    "saved_run": _run,
    "old_run": _run,
    "new_run": _run,
    "--baseline": _run,
    "--suspects": _run,
    "--float": _float_model,
    "--quantized": _named_files(_MODELS),
    "--quantized-form": _model,
    "--compiled": _model,
    # data
    "--representative-data": _data,
    "--debug-data": _data,
    "--evaluation-data": _data,
    "--training-data": _data,
    "--signature-data": _keyed_data,
    # names
    "--node": _nodes,
    "--output-node": _nodes,
    "--denylisted-node": _nodes,
    "--leave-float": _nodes,
    "--quantize": _joined(_of(("all", "weights", "activation")), _nodes),
    "--operator": _nodes,
    "--from": _tensors,
    "--to": _tensors,
    "--layer": _layers,
    "--signature": _signatures,
    "--denylisted-op": _of(_OPERATORS),
    # words
    "--metric": _joined(_of(_METRICS), _functions),
    "--rank-by": _joined(_of(_RANKS), _of(_METRICS)),
    "--criterion": _of(_COLUMNS),
    "--form": _of(_FORMS),
    "--input-type": _of(_TYPES),
    "--output-type": _of(_TYPES),
    "--target": _of(_TARGETS),
    "--loss": _of(("distillation", "sparse_categorical_crossentropy", "categorical_crossentropy", "mean_squared_error")),
    "--against": _of(_KERNELS),
    "--delegate": _library,
    "--against-delegate": _library,
    "--memory": _of(("500M", "1GB", "2GB", "4GB")),
    # files
    "--output": _files(("/",)),
    "--charts": _files(("/",)),
    "prepared": _files(("/",)),
    "results": _files((".jsonl",)),
    "--result": _files((".json",)),
    "--class-names": _files((".txt", ".names", ".csv")),
    "--log": _files((".log", ".txt")),
    "--log-file": _files(),
    "--html": _files((".html",)),
    "--csv": _files((".csv",)),
    "--junit": _files((".xml",)),
    "--summary": _files((".md",)),
}
