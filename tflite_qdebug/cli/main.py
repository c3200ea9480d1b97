"""The parser, and the one place where an error becomes a message and an exit code."""

from __future__ import annotations

import argparse
import logging
import os
import sys
import traceback
from collections.abc import Sequence

from tflite_qdebug import __version__
from tflite_qdebug.cli.options import COMMON, DATA_FORMS, QUANTIZING, RUNNING, add_options
from tflite_qdebug.errors import QDebugError

__all__ = ["main"]

_EXIT_CODES = """\
exit codes: 0 done, 1 unforeseen error, 2 wrong option, 3 model, 4 dataset, 5 conversion, 6 interpreter or delegate,
7 package missing, 8 result could not be written, 9 metric, 10 kernels differ (--fail-on-difference), 130 interrupted
"""
_EPILOGS = {
    "demo": "example:\n  tflite-qdebug demo --output demo\n",
    "convert": """\
examples:
  tflite-qdebug convert example --kind int8 --kind full_integer --output models
  tflite-qdebug convert model.keras --representative-data samples.npz --kind int8 --output models
  tflite-qdebug convert float.tflite --representative-data 'images:photos?size=224x224&scale=0.00784&offset=-1' \\
      --kind int8 --denylisted-node 'model/head/MatMul' --denylisted-op MEAN --output models
  tflite-qdebug convert saved_model/ --representative-data mydata:samples --kind debug --output models
""",
    "evaluate": """\
examples:
  tflite-qdebug evaluate example int8=models/example_int8.tflite --evaluation-data example
  tflite-qdebug evaluate float.tflite int8.tflite --evaluation-data test.npz --metric top_1 --metric top_5
  tflite-qdebug evaluate float.tflite int8.tflite --evaluation-data test.npz --metric mymetrics:psnr
""",
    "run": """\
examples:
  tflite-qdebug run example --output results
  tflite-qdebug run model.keras --representative-data calibration.npz --debug-data debug.npz --output results
  tflite-qdebug run float.tflite --representative-data calibration.npz --debug-data debug.npz --whole-model \\
      --criterion sqnr_db --kernels builtin
  tflite-qdebug run --float float.tflite --quantized int8.tflite --debug-data debug.npz --parts --output results
  tflite-qdebug run --quantized int8.tflite --debug-data debug.npz
  tflite-qdebug run --float float.tflite --quantized ptq=int8.tflite --quantized qat=qat.tflite --debug-data debug.npz \\
      --evaluation-data test.npz
""",
    "qat": """\
examples:
  tflite-qdebug qat example --suspects results/run.json --learning-rate 0.001 --output qat
  tflite-qdebug qat model.keras --training-data train.npz --representative-data calibration.npz --evaluation-data test.npz \\
      --epochs 3 --output qat
  tflite-qdebug qat model.keras --layer conv2d_3 --layer 'model/conv2d_7/Relu…' --annotation-only
""",
    "compare-kernels": """\
examples:
  tflite-qdebug compare-kernels int8.tflite --debug-data debug.npz
  tflite-qdebug compare-kernels int8.tflite --debug-data debug.npz --runtime tensorflow --against ai_edge_litert
  tflite-qdebug compare-kernels int8.tflite --debug-data debug.npz --kernels builtin --against-delegate libdelegate.so \\
      --fail-on-difference 1
""",
}


def parser() -> argparse.ArgumentParser:
    """Returns the parser of the command line."""
    top = argparse.ArgumentParser(
        prog="tflite-qdebug",
        description="Debugs the quantization of TensorFlow Lite models: which layers lose accuracy, and what to change.",
        epilog="start with:\n  tflite-qdebug demo\n  tflite-qdebug run --help\n\n" + _EXIT_CODES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    top.add_argument("--version", action="version", version=f"tflite-qdebug {__version__}")
    verbs = top.add_subparsers(dest="verb", metavar="VERB", required=True)
    kinds = "float, float16, dynamic_range, int8, full_integer, int16x8"

    def add(name: str, words: str, options: Sequence[str], kinds: str = kinds) -> None:
        forms = DATA_FORMS + "\n" if any(option.endswith("-data") for option in options) else ""
        verb = verbs.add_parser(
            name,
            help=words,
            description=words[0].upper() + words[1:] + ".",
            epilog=_EPILOGS[name] + "\n" + forms + _EXIT_CODES,
            formatter_class=argparse.RawDescriptionHelpFormatter,
            allow_abbrev=False,
        )
        add_options(verb, (*options, *COMMON), kinds=kinds)

    add("demo", "the whole way on the built-in example, in less than a minute", ["--output"])
    add(
        "convert",
        "convert and calibrate once, and write quantized and debug models",
        ["model", "--representative-data", "--limit", "--kind", *QUANTIZING, "--output"],
        kinds + ", calibrated, debug, debug_whole_model",
    )
    add(
        "evaluate",
        "accuracy (or any metric) and size of several models on one dataset",
        ["models", "--evaluation-data", "--metric", "--label-offset", "--limit", *RUNNING, "--output"],
    )
    add(
        "run",
        "the error of each layer, and the worst layers",
        [
            *("optional_model", "--float", "--quantized", "--representative-data", "--debug-data", "--signature-data"),
            *("--evaluation-data", "--metric", "--label-offset"),
            *("--limit", "--kind", *QUANTIZING, "--whole-model", "--parts", "--sequence", "--criterion", "--count"),
            *(*RUNNING, "--output"),
        ],
    )
    add(
        "qat",
        "train a Keras model quantization-aware; float, PTQ and QAT side by side",
        [
            *("model", "--training-data", "--representative-data", "--evaluation-data", "--debug-data", "--limit"),
            *("--layer", "--suspects", "--count", "--epochs", "--batch-size", "--learning-rate", "--loss", "--seed"),
            *("--freeze-batch-normalization", "--strict", "--annotation-only", "--kind", "--input-type", "--output-type"),
            *("--metric", "--label-offset", *RUNNING, "--output"),
        ],
        "int8, full_integer",
    )
    add(
        "compare-kernels",
        "the same model under two kernels: the difference that each operator makes, and which of the two is right",
        [
            *("quantized_model", "--debug-data", "--limit", "--signature", *RUNNING),
            *("--against", "--against-delegate", "--against-delegate-option", "--fail-on-difference", "--count", "--output"),
        ],
    )
    return top


def main(words: Sequence[str] | None = None) -> int:
    """Runs the command line and returns its exit code.

    Args:
        words: The arguments; those of the process where None.
    """
    words = list(sys.argv[1:] if words is None else words)
    arguments = parser().parse_args(words)
    arguments.words = words
    _quieten()
    try:
        return _run(arguments)
    except KeyboardInterrupt:
        print("tflite-qdebug: interrupted", file=sys.stderr)
        return 130
    except BrokenPipeError:  # the reader of our output has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except QDebugError as error:
        if arguments.debug:
            traceback.print_exc()
        print(f"tflite-qdebug: {error}", file=sys.stderr)
        return error.exit_code
    except Exception as error:
        if arguments.debug:
            traceback.print_exc()
        print(
            f"tflite-qdebug: unforeseen error: {type(error).__name__}: {error}\n(--debug shows where it came from)",
            file=sys.stderr,
        )
        return 1


def _run(arguments: argparse.Namespace) -> int:
    # Here, so that --help needs none of it.
    from tflite_qdebug.cli import demo, kernels, qat, runs, verbs
    from tflite_qdebug.cli.output import Screen

    verb = {
        "demo": demo.demo,
        "convert": verbs.convert,
        "evaluate": verbs.evaluation,
        "run": runs.run,
        "compare-kernels": kernels.kernels,
        "qat": qat.qat,
    }[arguments.verb]
    verb(arguments, Screen(arguments.json))
    return 0


def _quieten() -> None:
    """Leaves TensorFlow's chatter out, unless the user asked for it by the usual variable."""
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    logging.basicConfig(format="%(levelname)s: %(message)s", level=logging.ERROR)
    logging.getLogger("tensorflow").setLevel(logging.ERROR)
