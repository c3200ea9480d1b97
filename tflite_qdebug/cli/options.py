"""Every option of the command line, declared once; each verb lists the ones it takes."""

from __future__ import annotations

import argparse
from collections.abc import Iterable
from typing import Any

from tflite_qdebug.collect import Backend
from tflite_qdebug.errors import OptionError
from tflite_qdebug.interpreter import Delegate
from tflite_qdebug.tf_private import KERNELS, RUNTIMES

DATA_FORMS = """\
Data may be given as
  samples.npz                       an array (samples, ...) for each input, by its name; labels under 'labels'
  folder/                           <input>/<n>.npy, or images (class subfolders or labels.csv give labels)
  'images:folder?size=224x224&scale=0.00784&offset=-1'      images; value = pixel * scale + offset
  'tfds:mnist?split=test[:500]&data_dir=/data&scale=0.0039'   a prepared TensorFlow dataset
  package.module:function           a function that returns any of these, or a generator of samples
  example                           the built-in example's own samples (with the model 'example')
"""

_OPTIONS: dict[str, dict[str, Any]] = {
    "model": {
        "help": "float .tflite, .keras, .h5, SavedModel folder, or 'example' for the built-in one",
        "metavar": "MODEL",
    },
    "models": {
        "help": "models to compare, as PATH or NAME=PATH; the first is the yardstick",
        "metavar": "MODEL",
        "nargs": "+",
    },
    "--representative-data": {"metavar": "DATA", "help": "samples that calibrate the ranges of activations"},
    "--debug-data": {"metavar": "DATA", "help": "samples that are measured; best other ones than calibrate"},
    "--evaluation-data": {"metavar": "DATA", "help": "samples with labels"},
    "--limit": {"metavar": "N", "type": int, "help": "take the first N samples of each dataset"},
    "--kind": {
        "action": "append",
        "metavar": "KIND",
        "help": "kind of model to make; may be repeated (default: int8). One of: {kinds}",
    },
    "--input-type": {"metavar": "TYPE", "help": "type of the inputs: float32, int8, uint8 or int16"},
    "--output-type": {"metavar": "TYPE", "help": "type of the outputs"},
    "--denylisted-node": {
        "action": "append",
        "default": [],
        "metavar": "NAME",
        "help": "keep the operator with this output tensor in float; may be repeated",
    },
    "--denylisted-op": {
        "action": "append",
        "default": [],
        "metavar": "TYPE",
        "help": "keep all operators of this type in float, such as CONV_2D; may be repeated",
    },
    "--per-tensor": {"action": "store_true", "help": "one scale for all channels of a weight"},
    "--dense-per-tensor": {"action": "store_true", "help": "the same for dense layers alone, as Edge TPUs need it"},
    "--calibration": {
        "choices": ("tensorflow", "exposed"),
        "default": "tensorflow",
        "help": "TensorFlow's calibrator, or the exposed float model, which is faster (default: tensorflow)",
    },
    "--whole-model": {"action": "store_true", "help": "measure accumulated error, not what each operator adds"},
    "--criterion": {
        "metavar": "COLUMN",
        "default": "rmse_over_scale",
        "help": "column that ranks the layers (default: rmse_over_scale); also rmse, sqnr_db, cosine, max_abs_error...",
    },
    "--count": {"metavar": "N", "type": int, "default": 10, "help": "how many of the worst layers to show (default: 10)"},
    "--metric": {
        "action": "append",
        "metavar": "METRIC",
        "help": "top_1, top_5 or module:function with f(outputs, label) -> number; may be repeated (default: top_1)",
    },
    "--label-offset": {
        "metavar": "N",
        "type": int,
        "default": 0,
        "help": "add N to each label, for models that count a background class first",
    },
    "--output": {"metavar": "DIR", "help": "folder for all results; made if need be"},
    "--json": {"action": "store_true", "help": "print the result as JSON on standard output"},
    "--runtime": {
        "choices": ("auto", *RUNTIMES),
        "default": "auto",
        "help": "package that runs the models (default: the first that is installed)",
    },
    "--kernels": {
        "choices": KERNELS,
        "default": "auto",
        "help": "auto: XNNPACK where it takes the model; builtin; reference (default: auto)",
    },
    "--delegate": {"metavar": "LIBRARY", "help": "shared library of a delegate to run the quantized model on"},
    "--delegate-option": {
        "action": "append",
        "default": [],
        "metavar": "KEY=VALUE",
        "help": "option of the delegate; may be repeated",
    },
    "--workers": {"metavar": "N", "type": int, "help": "interpreters at once (default: one per processor)"},
    "--threads": {"metavar": "N", "type": int, "default": 1, "help": "threads of each interpreter (default: 1)"},
    "--no-progress": {"action": "store_true", "help": "no progress bars"},
    "--debug": {"action": "store_true", "help": "show the traceback of an error"},
}

COMMON = ("--json", "--no-progress", "--debug")
RUNNING = ("--runtime", "--kernels", "--delegate", "--delegate-option", "--workers", "--threads")
QUANTIZING = (
    "--input-type",
    "--output-type",
    "--denylisted-node",
    "--denylisted-op",
    "--per-tensor",
    "--dense-per-tensor",
    "--calibration",
)


def add_options(parser: argparse.ArgumentParser, names: Iterable[str], **words: str) -> None:
    """Adds options by their names; ``words`` fill the braces of their help."""
    for name in names:
        keywords = dict(_OPTIONS[name])
        keywords["help"] = keywords["help"].format(**words) if words and "{" in keywords["help"] else keywords["help"]
        parser.add_argument(name, **keywords)


def backend_of(arguments: argparse.Namespace) -> Backend:
    """Returns which code runs the models.

    Raises:
        OptionError: For a delegate option that is not ``key=value``.
    """
    pairs = {}
    for text in arguments.delegate_option:
        key, equals, value = text.partition("=")
        if not equals:
            raise OptionError(f"got --delegate-option {text!r}, expected KEY=VALUE")
        pairs[key] = value
    if pairs and not arguments.delegate:
        raise OptionError("got --delegate-option without --delegate LIBRARY")
    delegates = (Delegate(arguments.delegate, pairs),) if arguments.delegate else ()
    return Backend(arguments.runtime, arguments.kernels, delegates, arguments.workers, arguments.threads)


def quantize_options(arguments: argparse.Namespace) -> dict[str, Any]:
    """Returns the arguments of ``CalibratedModel.quantize`` that the command line gives."""
    return {
        "input_type": arguments.input_type,
        "output_type": arguments.output_type,
        "denylisted_nodes": tuple(arguments.denylisted_node),
        "denylisted_ops": tuple(arguments.denylisted_op),
        "per_channel": not arguments.per_tensor,
        "per_channel_dense": not arguments.dense_per_tensor,
    }
