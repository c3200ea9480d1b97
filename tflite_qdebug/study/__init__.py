"""A saved run and the analyses on it.

`setup` tells what a run was made of, `saved_run` computes each analysis once and keeps it in the folder, `run_all` makes all.
"""

from tflite_qdebug.study.saved_run import Study
from tflite_qdebug.study.setup import SETUP, Setup, lasting, lasting_delegates, named_data

__all__ = ["SETUP", "Setup", "Study", "lasting", "lasting_delegates", "named_data"]
