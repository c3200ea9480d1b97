"""The command ``tflite-qdebug``: options declared once, each verb one call of the library, errors without a traceback."""

from tflite_qdebug.cli.main import main

__all__ = ["main"]
