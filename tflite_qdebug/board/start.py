"""What an archive runs first: it looks at its own hash before anything of it is believed. Becomes its ``__main__.py``.

Nothing of the package is imported before, and the syntax is that of any Python 3, so that an old one is told what is needed.
"""

import hashlib
import os
import sys

#: The first line of an archive; the second is `SEAL` and the hash of all that follows it.
FIRST = b"#!/usr/bin/env python3\n"
SEAL = b"# sha256:"


def seal_of(archive: str) -> str:
    """Returns the hash that an archive says it has; empty where it says none."""
    with open(archive, "rb") as file:
        first, second = file.readline(100), file.readline(100)
    sealed = first == FIRST and second.startswith(SEAL) and second.endswith(b"\n")
    return second[len(SEAL) : -1].decode("ascii", "replace") if sealed else ""


def whole(archive: str) -> bool:
    """Returns whether an archive is as it was written."""
    digest = hashlib.sha256()
    with open(archive, "rb") as file:
        file.seek(len(FIRST) + len(SEAL) + 65)
        for block in iter(lambda: file.read(1 << 20), b""):
            digest.update(block)
    return seal_of(archive) == digest.hexdigest()


def main() -> int:
    """Checks the archive that this file stands in, and runs it."""
    if sys.version_info < (3, 7):
        return refused("got Python {}, expected 3.7 or newer".format(sys.version.split()[0]), 7)
    archive = os.path.dirname(os.path.abspath(__file__))
    if os.path.isdir(archive):
        return refused("{} was unpacked; run the archive itself: python NAME.pyz".format(archive), 3)
    if not whole(archive):
        return refused("the hash of {} is wrong: it was changed, or not copied whole; copy it anew".format(archive), 3)
    try:
        import numpy  # noqa: F401
    except ImportError as error:
        return refused("numpy cannot be imported ({}); install an interpreter wheel, which needs it".format(error), 7)
    from tflite_qdebug.board.command import main as run

    return run(archive)


def refused(words: str, code: int) -> int:
    """Says why nothing is run."""
    sys.stderr.write("bundle: {}\n".format(words))
    return code


if __name__ == "__main__":
    sys.exit(main())
