"""Prints a page of the site as a shell script, what a new user types: ``python tests/page_script.py PAGE | bash -eu``."""

from __future__ import annotations

import re
import sys
from pathlib import Path


def script(text: str) -> str:
    """Returns the commands of a page as they stand there, and its Python blocks for the Python of the environment."""
    lines = []
    for language, block in re.findall(r"^```(sh|python)\n(.*?)^```$", text, re.MULTILINE | re.DOTALL):
        lines.append(block if language == "sh" else f"python - <<'END OF BLOCK'\n{block}END OF BLOCK\n")
    return "".join(lines)


if __name__ == "__main__":
    sys.stdout.write(script(Path(sys.argv[1]).read_text(encoding="utf-8")))
