"""The part of the package that runs on a board: numpy and one interpreter wheel, syntax of Python 3.7.

A *bundle* is one archive with models, samples, expected outputs and these modules; ``python NAME.pyz`` runs it where nothing
is installed but the wheel. What it measures goes line by line into a *result*, which only ever grows: an interruption, a full
disk or a dead delegate loses nothing that is in it, and the same command goes on behind it.
"""

from __future__ import annotations
