"""How Sphinx builds the site: ``sphinx-build -W --keep-going docs docs/_build`` with the extra ``docs`` installed.

The pages are Markdown that also reads well on a forge. What they link to outside of this folder (notebooks, benchmarks, the
changelog) is copied into it, and the links are bent there, so that it is part of the site.
"""

from __future__ import annotations

import functools
import inspect
import re
import shutil
import sys
from pathlib import Path
from typing import Any

DOCS = Path(__file__).parent
ROOT = DOCS.parent
sys.path[:0] = [str(ROOT), str(DOCS)]

from command_pages import write_command_pages  # noqa: E402
from reference_pages import write_reference_pages  # noqa: E402

import tflite_qdebug  # noqa: E402 - the package beside these pages, installed or not

project = "tflite_qdebug"
version = release = tflite_qdebug.__version__
copyright = "the authors of tflite_qdebug, Apache-2.0"  # noqa: A001 - Sphinx's name for it

extensions = [
    "myst_nb",
    "sphinx.ext.autodoc",
    "sphinx.ext.napoleon",
    "sphinx_copybutton",
]
exclude_patterns = ["_build"]
nitpicky = False

#: Files and folders outside of this one that belong to the site, and where they go.
_COPIED = {
    "notebooks": "notebooks",
    "benchmarks/README.md": "project/benchmarks.md",
    "CHANGELOG.md": "project/changelog.md",
}

myst_enable_extensions = ["colon_fence", "deflist"]
myst_heading_anchors = 3
# The notebooks are shown as they were committed; tests run them.
nb_execution_mode = "off"
nb_merge_streams = True

autodoc_member_order = "bysource"
autodoc_typehints = "signature"
autodoc_typehints_format = "short"
autodoc_class_signature = "mixed"
autodoc_preserve_defaults = True
default_role = "py:obj"
# Dashes alone: quotation marks are written as they are meant.
smartquotes_action = "D"
python_use_unqualified_type_names = True
python_maximum_signature_line_length = 100
napoleon_google_docstring = True
napoleon_numpy_docstring = False
napoleon_use_rtype = False
napoleon_use_ivar = False
add_module_names = False
toc_object_entries_show_parents = "hide"

html_theme = "furo"
html_title = "tflite_qdebug"
html_static_path = ["_static"]
html_css_files = ["site.css"]
html_copy_source = False
html_show_sourcelink = False
highlight_language = "text"
pygments_style = "friendly"
pygments_dark_style = "monokai"
copybutton_prompt_text = "$ "
copybutton_only_copy_prompt_lines = True

# Addresses in examples, and those that answer only to people.
linkcheck_ignore = [r"http://localhost.*"]
linkcheck_timeout = 20


def _copy(source: Path, target: Path) -> None:
    # What has not changed keeps its time, so that Sphinx does not read it again.
    if not target.exists() or target.read_bytes() != source.read_bytes():
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(source, target)


def _copy_all(app: Any, config: Any) -> None:
    for source, target in _COPIED.items():
        if (ROOT / source).is_file():
            _copy(ROOT / source, DOCS / target)
            continue
        notebooks = {path.name: path for path in (ROOT / source).glob("*.ipynb")}
        for path in (DOCS / target).glob("*.ipynb"):
            if path.name not in notebooks:
                path.unlink()
        for name, path in notebooks.items():
            _copy(path, DOCS / target / name)
    write_command_pages(DOCS / "verbs")
    write_reference_pages(DOCS / "api")


def _bend_links(app: Any, name: str, source: list[str]) -> None:
    for outside, inside in _COPIED.items():
        source[0] = re.sub(rf"\]\((?:\.\./)+{re.escape(outside)}", f"]({'../' * name.count('/')}{inside}", source[0])
    if name.startswith(("project/", "notebooks/")):
        source[0] = source[0].replace("](../docs/", "](../")


def _resolve_inner_name(app: Any, environment: Any, node: Any, content: Any) -> Any:
    """A class is documented where it is exported, and named in signatures where it is defined."""
    if node.get("refdomain") != "py":
        return None
    name = node["reftarget"].rpartition(".")[2]
    domain = environment.get_domain("py")
    kinds = ("class", "exception", "function")
    found = [full for full, entry in domain.objects.items() if full.rpartition(".")[2] == name and entry.objtype in kinds]
    if len(found) != 1:
        return None
    return domain.resolve_xref(environment, node["refdoc"], app.builder, "obj", found[0], node, content)


def _skip_fields(app: Any, what: str, name: str, member: Any, skip: bool, options: Any) -> bool | None:
    # What a class holds stands under "Attributes" in its docstring.
    is_method = inspect.isroutine(member) or isinstance(
        member, (property, functools.cached_property, classmethod, staticmethod)
    )
    return True if what == "class" and not is_method else None


def _escape(app: Any, what: str, name: str, member: Any, options: Any, lines: list[str]) -> None:
    # |error| is an absolute value, and no substitution.
    lines[:] = [line if line.startswith("    ") else re.sub(r"(``[^`]*``)|\|", lambda m: m[1] or "\\|", line) for line in lines]


def setup(app: Any) -> dict[str, bool]:
    """Tells Sphinx of all of the above."""
    app.connect("config-inited", _copy_all)
    app.connect("source-read", _bend_links)
    app.connect("autodoc-skip-member", _skip_fields)
    app.connect("autodoc-process-docstring", _escape)
    app.connect("missing-reference", _resolve_inner_name)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
