"""``python -m tflite_qdebug`` is the command ``tflite-qdebug``."""

from tflite_qdebug.cli import main

if __name__ == "__main__":
    raise SystemExit(main())
