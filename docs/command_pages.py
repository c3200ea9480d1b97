"""Writes a page for each verb of the command line, from its parser."""

from __future__ import annotations

import argparse
import re
from pathlib import Path

from tflite_qdebug.cli.main import parser
from tflite_qdebug.cli.options import COMMON, RUNNING

#: Options that are told once for all verbs have a heading of their own, behind those that the verb is about.
_HEADINGS = {"Models and their kernels": RUNNING, "Output": COMMON}


def write_command_pages(folder: Path) -> None:
    """Writes ``<verb>.md`` for each verb, and removes pages of verbs that are gone.

    Args:
        folder: Where the pages go.
    """
    folder.mkdir(exist_ok=True)
    pages = {f"{name.replace(' ', '-')}.md": page(name, verb) for name, verb in verbs(parser()).items()}
    for path in folder.glob("*.md"):
        if path.name not in pages:
            path.unlink()
    for name, text in pages.items():
        path = folder / name
        if not path.exists() or path.read_text(encoding="utf-8") != text:
            path.write_text(text, encoding="utf-8")


def verbs(top: argparse.ArgumentParser, prefix: str = "") -> dict[str, argparse.ArgumentParser]:
    """Returns the parser of each verb by its words (``run``, ``edgetpu check``), in the order of ``--help``."""
    found = {}
    for group in _groups(top):
        for choice in group._choices_actions:
            verb = group.choices[choice.metavar.split()[0] if choice.metavar else choice.dest]
            name = f"{prefix}{verb.prog.split()[-1]}"
            if _groups(verb):
                found.update(verbs(verb, f"{name} "))
            else:
                found[name] = verb
    return found


def page(name: str, verb: argparse.ArgumentParser) -> str:
    """Returns a verb's page in MyST Markdown: what it does, how it is called, examples, options."""
    lines = [f"# {name}", "", verb.description or "", "", "```text", _usage(verb), "```", ""]
    shown = examples(verb)
    if shown:
        lines += ["```sh", shown, "```", ""]
    actions = [action for action in verb._actions if not isinstance(action, argparse._HelpAction)]
    placed = {option for options in _HEADINGS.values() for option in options}
    own = [action for action in actions if not placed.intersection(action.option_strings)]
    lines += ["```{program} tflite-qdebug " + name, "```", ""]
    for heading, chosen in [
        ("Arguments", [action for action in own if not action.option_strings]),
        ("Options", [action for action in own if action.option_strings]),
        *((title, [a for a in actions if set(options).intersection(a.option_strings)]) for title, options in _HEADINGS.items()),
    ]:
        if chosen:
            lines += [f"## {heading}", "", *(line for action in chosen for line in _entry(action))]
    return "\n".join(lines)


def examples(verb: argparse.ArgumentParser) -> str:
    """Returns the commands that ``--help`` ends with."""
    blocks = re.findall(r"^[^\n]*:\n((?:  .*\n?)+)", verb.epilog or "", re.MULTILINE)
    shown = [line[2:] for block in blocks for line in block.splitlines()]
    commands = [line for line in shown if re.match(r"tflite-qdebug |model-explorer |python3 |sh |  +\S", line)]
    return "\n".join(commands) if commands and commands[0].startswith("tflite-qdebug") else ""


def _groups(parser: argparse.ArgumentParser) -> list[argparse._SubParsersAction]:
    return [action for action in parser._actions if isinstance(action, argparse._SubParsersAction)]


def _usage(verb: argparse.ArgumentParser) -> str:
    # The options are listed below; here stands what cannot be left out.
    words = [verb.prog]
    for action in verb._actions:
        if action.option_strings and action.required:
            words.append(f"{action.option_strings[-1]} {_value(action)}")
        elif not action.option_strings:
            words.append(_value(action))
    return " ".join([*words, "[OPTIONS]"])


def _value(action: argparse.Action) -> str:
    value = "{" + ",".join(map(str, action.choices)) + "}" if action.choices else action.metavar or action.dest.upper()
    wrapped = {None: "{}", "?": "[{}]", "*": "[{} ...]", "+": "{} [{} ...]"}
    return "" if action.nargs == 0 else wrapped.get(action.nargs, "{}").format(value, value)  # type: ignore[arg-type]


def _entry(action: argparse.Action) -> list[str]:
    names = ", ".join(f"{name} {_value(action)}".strip() for name in action.option_strings) or str(_value(action))
    text = (action.help or "") % {**vars(action), "prog": "tflite-qdebug"}
    text = re.sub(r"(?<![\w`])'([^'`]+)'(?!\w)", r"`\1`", text)
    text = "".join(part if part.startswith("`") else _plain(part) for part in re.split(r"(`[^`]*`)", text))
    if text.split(" ")[0].isalpha():
        text = text[0].upper() + text[1:]
    return ["````{option} " + names, text + ".", "````", ""]


def _plain(text: str) -> str:
    # Options are literals, and what Markdown would read as markup is not meant as such.
    text = text.replace("<", "&lt;").replace("*", "\\*")
    return re.sub(r"(?<![\w`-])(--?[a-z][a-z-]*)", r"`\1`", text)
