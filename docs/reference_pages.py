"""Writes the pages of the API reference: every name that the package exports, by subject."""

from __future__ import annotations

import importlib
import inspect
from pathlib import Path

import tflite_qdebug

__all__ = ["names_by_page", "write_reference_pages"]

#: Each page: file, title, introduction, and the modules whose exported names it has; the last takes what no other does.
_PAGES = [
    (
        "models",
        "Models",
        "From whatever there is to a float model, from there to a calibrated one, and from that to quantized ones of any kind.",
        ("conversion", "pipeline", "rewriting", "model", "analyses.post_training", "ptq_record"),
    ),
    ("data", "Data", "Representative, debug and evaluation datasets, from whatever there is.", ("datasets",)),
    (
        "measuring",
        "Measuring",
        "The error of each layer, accuracy of whole models, and kernels against each other.",
        (
            "analyses.layer_error", "analyses.pairs", "analyses.evaluation", "analyses.kernel_comparison", "analyses.samples",
            "record", "collect", "kernel_record", "statistics", "interpreter", "delegates",
        ),
    ),
    (
        "debugger",
        "TensorFlow's debugger",
        "The two classes that take the place of TensorFlow's.",
        ("debugger",),
    ),
    (
        "edgetpu",
        "Edge TPU and boards",
        "What maps, whether it is right there, and what runs on a board.",
        (
            "edgetpu", "edit", "analyses.cuts", "cut_record", "board_record", "bundling", "merging", "analyses.latency",
        ),
    ),
    (
        "remedies",
        "Remedies and training",
        "What to change, and the proof that it helped.",
        ("remedies", "outcome"),
    ),
    (
        "analyses",
        "Analyses",
        "Which nodes matter, where the error begins, why, and what to try; a `Study` is all of them on one run.",
        ("",),
    ),
]  # fmt: skip
#: What exported functions return or hold, and is not exported itself: modules and names.
_RETURNED = {
    "measuring": {
        "analyses.evaluation": ("Evaluation", "ModelScore"),
        "paired": ("PairedDifference",),
        "statistics": ("ErrorStatistics",),
    },
    "analyses": {
        "findings": ("Advice", "Channels", "Profile", "SampleError", "Samples", "Score", "Scores", "Suspect"),
    },
    "models": {"ptq_record": ("PtqModel", "Prediction")},
    "remedies": {"outcome": ("Difference", "Measured")},
    "edgetpu": {"latency_record": ("Latency", "ModelTime", "OperatorTime")},
}
_ORDER = ("analyses", "measuring", "models", "data", "remedies", "edgetpu", "debugger")


def names_by_page() -> dict[str, list[str]]:
    """Returns the exported names of each page: functions first, then classes, then values."""
    found: dict[str, list[str]] = {key: [] for key in _ORDER}
    for name in tflite_qdebug.__all__:
        # Errors have a page of their own.
        if name in tflite_qdebug._EXPORTS and tflite_qdebug._EXPORTS[name] != "errors":
            found[_page_of(name)].append(name)
    return {key: sorted(names, key=lambda name: (_kind(name), name.lower())) for key, names in found.items()}


def write_reference_pages(folder: Path) -> None:
    """Writes the pages, and one that leads to them.

    Args:
        folder: Where they go.
    """
    folder.mkdir(exist_ok=True)
    texts = {key: (title, words) for key, title, words, _ in _PAGES}
    light = "`import tflite_qdebug` loads numpy and nothing heavier; each name is loaded when it is first used."
    index = ["# API reference", "", light, ""]
    for key, names in names_by_page().items():
        title, words = texts[key]
        index += [f"## [{title}]({key}.md)", "", words, "", "| | |", "|---|---|"]
        index += [f"| {{py:obj}}`{name} <tflite_qdebug.{name}>` | {_summary(name)} |" for name in names] + [""]
        rows = [f"# {title}", "", words, "", "```{eval-rst}", *_directives(names), "```", ""]
        _write(folder / f"{key}.md", "\n".join(rows + _returned(key)))
    others = {"edit": "Editing models", "errors": "Errors", "example": "The built-in example"}
    index += ["## Modules", "", *(f"- [{title}]({name}.md): `tflite_qdebug.{name}`" for name, title in others.items()), ""]
    index += ["```{toctree}", ":hidden:", *names_by_page(), *others, "```", ""]
    _write(folder / "index.md", "\n".join(index))
    for name, title in others.items():
        rows = [f".. automodule:: tflite_qdebug.{name}", "   :members:", "   :show-inheritance:"]
        _write(folder / f"{name}.md", "\n".join([f"# {title}", "", "```{eval-rst}", *rows, "```", ""]))


def _page_of(name: str) -> str:
    module = tflite_qdebug._EXPORTS[name]
    for key, _, _, modules in _PAGES:
        if any(not start or module == start or module.startswith(f"{start}.") for start in modules):
            return key
    raise AssertionError(name)


def _kind(name: str) -> int:
    value = getattr(tflite_qdebug, name)
    return 0 if inspect.isfunction(value) else 1 if inspect.isclass(value) else 2


def _directives(names: list[str]) -> list[str]:
    lines = [".. currentmodule:: tflite_qdebug", ""]
    for name in names:
        directive = ("autofunction", "autoclass", "autodata")[_kind(name)]
        lines += [f".. {directive}:: {name}", *(["   :members:"] if directive == "autoclass" else []), ""]
    return lines


def _returned(key: str) -> list[str]:
    rows = [(module, name) for module, names in _RETURNED.get(key, {}).items() for name in names]
    if not rows:
        return []
    lines = [line for module, name in rows for line in (f".. autoclass:: tflite_qdebug.{module}.{name}", "   :members:", "")]
    return ["## What these return and hold", "", "```{eval-rst}", *lines, "```", ""]


def _summary(name: str) -> str:
    value = getattr(tflite_qdebug, name)
    if _kind(name) == 2:
        module = importlib.import_module(f"tflite_qdebug.{tflite_qdebug._EXPORTS[name]}")
        return f"`{getattr(module, name)!r}`"
    first = (inspect.getdoc(value) or "").split("\n\n")[0].replace("\n", " ").replace("``", "`")
    return first.replace("|", "\\|")


def _write(path: Path, text: str) -> None:
    # What has not changed keeps its time, so that Sphinx does not read it again.
    if not path.exists() or path.read_text(encoding="utf-8") != text:
        path.write_text(text, encoding="utf-8")
