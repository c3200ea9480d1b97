"""Every option of the command line, declared once; each verb lists the ones it takes."""

from __future__ import annotations

import argparse
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

from tflite_qdebug.outcome import SPENDING, UNITS
from tflite_qdebug.tf_private import KERNELS, RUNTIMES

if TYPE_CHECKING:
    from tflite_qdebug.collect import Backend

DATA_FORMS = """\
Data may be given as
  samples.npz                       an array (samples, ...) for each input, by its name; labels under 'labels'
  folder/                           <input>/<n>.npy, or images (class subfolders or labels.csv give labels)
  'images:folder?size=224x224&scale=0.00784&offset=-1'      images; value = pixel * scale + offset
  'tfds:mnist?split=test[:500]&data_dir=/data&scale=0.0039'   a prepared TensorFlow dataset
  'images:folder?size=224x224&preprocess=package.module:function'    what the function makes of each image's array
  package.module:function           a function that returns any of these, a tf.data.Dataset, or a generator of samples
  example                           the built-in example's own samples (with the model 'example')
"""

_OPTIONS: dict[str, dict[str, Any]] = {
    "model": {
        "help": "float .tflite, .keras, .h5, SavedModel folder, or 'example' for the built-in one",
        "metavar": "MODEL",
    },
    "optional_model": {
        "help": "float .tflite, .keras, .h5, SavedModel folder, or 'example'; to be quantized here (else give --quantized)",
        "metavar": "MODEL",
        "nargs": "?",
    },
    "--float": {
        "metavar": "MODEL",
        "help": "the float model that --quantized was made from; without it, the dequantized weights take its place",
    },
    "--quantized": {
        "action": "append",
        "metavar": "MODEL.tflite",
        "help": "debug this quantized model, whoever made it, instead of making one; several, as NAME=PATH, are compared",
    },
    "--parts": {
        "nargs": "?",
        "const": "all",
        "metavar": "N",
        "help": "split each layer's error into weights, output (rounding, clipping) and input, and the model's into weights "
        "and activations, on the first N samples; without N on all (default, with --quantized: 8)",
    },
    "--sequence": {
        "action": "store_true",
        "help": "the samples are a sequence: variables keep their state from one to the next",
    },
    "--signature-data": {
        "action": "append",
        "default": [],
        "metavar": "KEY=DATA",
        "help": "debug data of one signature; may be repeated (default: --debug-data for each that it fits)",
    },
    "edgetpu_model": {
        "help": "quantized .tflite that the Edge TPU compiler would be given, or the folder of a saved run",
        "metavar": "MODEL",
    },
    "edgetpu --leave-float": {
        "action": "append",
        "default": [],
        "metavar": "NODE",
        "help": "say what leaves the Edge TPU where this node is left float; may be repeated, for all of them together",
    },
    "--prices": {"action": "store_true", "help": "the same for each node by itself"},
    "--log": {"metavar": "FILE", "help": "what the compiler printed, or its .log file: shown beside the prediction"},
    "--compiled": {"metavar": "MODEL_edgetpu.tflite", "help": "what the compiler made of the model: the same"},
    "--all": {"action": "store_true", "help": "list every operator, not just what is to be looked at"},
    "--runtime-version": {
        "metavar": "N",
        "type": int,
        "default": 14,
        "help": "oldest Edge TPU runtime to compile for, as -m of the compiler, 10 to 14 (default: 14)",
    },
    "--multiple-subgraphs": {"action": "store_true", "help": "map every piece and not the first alone, as -a of the compiler"},
    "--most-on-cpu": {
        "metavar": "N",
        "type": int,
        "help": "exit with code 12 where more operators than that run on the CPU",
    },
    "prepared": {"help": "folder that 'edgetpu prepare' wrote", "metavar": "DIR"},
    "--outputs": {
        "metavar": "N",
        "type": int,
        "default": 16,
        "help": "most intermediate tensors that one model has as outputs (default: 16)",
    },
    "--prefixes": {
        "metavar": "N",
        "type": int,
        "default": 16,
        "help": "models of the first so many operators, to bisect where the compiler refuses others (default: 16)",
    },
    "--tolerance": {
        "metavar": "STEPS",
        "type": float,
        "default": 1.0,
        "help": "quantization steps that a layer may differ by (default: 1)",
    },
    "--uncompiled": {"action": "store_true", "help": "run the models as they were prepared, not compiled"},
    "--bisect": {
        "action": "store_true",
        "help": "bisect by models of the first so many operators, instead of making intermediate tensors outputs",
    },
    "--result": {"metavar": "FILE", "help": "run nothing, show what compare.py measured elsewhere"},
    "quantized_model": {"help": ".tflite to run, quantized or not", "metavar": "MODEL.tflite"},
    "models": {
        "help": "models to compare, as PATH or NAME=PATH; the first is the yardstick",
        "metavar": "MODEL",
        "nargs": "+",
    },
    "run": {"help": "folder that 'run ... --output' or 'runall' wrote, or its run.json", "metavar": "RUN"},
    "converted model": {
        "help": "as for 'run'; or the folder of a saved run, whose float model and representative data are taken",
        "metavar": "MODEL",
    },
    "model_or_run": {
        "help": "the folder of a saved run, to go on with it; or a model to begin with, as for 'run'",
        "metavar": "RUN_OR_MODEL",
        "nargs": "?",
    },
    "--mode": {
        "action": "append",
        "choices": ("node", "weights", "activation", "float"),
        "help": "what is quantized: one node alone, its weights alone, its input activations alone; or float: one node is left "
        "float, all others are quantized; may be repeated (default: node)",
    },
    "--node": {
        "action": "append",
        "metavar": "NAME",
        "help": "this node only; tables shorten names with …, which is taken too; may be repeated",
    },
    "--output-node": {"metavar": "NAME", "help": "measure the error at this node (default: at the model's outputs)"},
    "--rank-by": {
        "metavar": "METRIC",
        "default": "sqnr_db",
        "help": "sqnr_db, cosine, mse, mre, chebyshev, kl, flips, or the name of a --metric (default: sqnr_db); of accumulated "
        "error, what is shown: one of the first five, or rmse",
    },
    "--memory": {
        "metavar": "SIZE",
        "help": "what models may take, of all workers together: 800M, 2GB; with less the samples are gone through more than "
        "once (default: a quarter of the machine's)",
    },
    "--quantize": {
        "action": "append",
        "default": [],
        "metavar": "GROUP",
        "help": "one curve with this quantized: a node, a JSON list of nodes, weights, activation or all; may be repeated "
        "(default: all, weights and activation)",
    },
    "--leave-float": {
        "action": "append",
        "default": [],
        "metavar": "GROUP",
        "help": "one curve with this left float and all others quantized: a node, or a JSON list of nodes; may be repeated",
    },
    "--average": {"action": "store_true", "help": "also write the running mean"},
    "--threshold": {
        "metavar": "X",
        "type": float,
        "help": "stop where --rank-by is this good (default: cosine 0.999, sqnr_db 27, kl 0.01, flips 0.01)",
    },
    "--most": {"metavar": "N", "type": int, "default": 20, "help": "most nodes to be left float (default: 20)"},
    "--axis": {"metavar": "N", "type": int, "help": "axis of the channels (default: the operator's own)"},
    "--no-charts": {"action": "store_true", "help": "no PNG and SVG files"},
    "--charts": {
        "nargs": "?",
        "const": "",
        "metavar": "DIR",
        "help": "also write every chart as PNG and SVG (default folder: the run's)",
    },
    "bundle --compiled": {
        "metavar": "MODEL_edgetpu.tflite",
        "help": "the quantized model as the compiler has made it; runs with --delegate (default: edgetpu)",
    },
    "bundle --delegate": {
        "metavar": "LIBRARY",
        "help": "runs the compiled model on the board, else the quantized one: edgetpu, or a library's path there",
    },
    "bundle --limit": {"metavar": "N", "type": int, "help": "take the first N samples of each dataset (default: 50)"},
    "bundle --output": {"metavar": "FILE", "help": "the archive (default: RUN/NAME.pyz, by the run's folder)"},
    "--no-debug-model": {"action": "store_true", "help": "leave out the model that measures the error of each layer"},
    "results": {"help": "what the bundle wrote on a board", "metavar": "RESULT", "nargs": "+"},
    "--name": {"metavar": "BOARD", "help": "what to call the board (default: as it calls itself)"},
    "--seconds": {
        "metavar": "S",
        "type": float,
        "default": 2.0,
        "help": "how long each whole model is timed, ten runs at least (default: 2)",
    },
    "--operator-seconds": {
        "metavar": "S",
        "type": float,
        "default": 0.1,
        "help": "the same for each operator (default: 0.1)",
    },
    "shell": {"help": "bash or zsh", "choices": ("bash", "zsh")},
    "saved_run": {"help": "folder that 'run ... --output' or 'runall' wrote, or its run.json", "metavar": "RUN"},
    "old_run": {"help": "the run before, as a folder or its run.json", "metavar": "OLD"},
    "new_run": {"help": "the run after", "metavar": "NEW"},
    "--min-sqnr": {
        "action": "append",
        "metavar": "[OUTPUT:]DB",
        "help": "least SQNR of the quantized model's outputs in dB: 25 or output:25 for all, NAME:25 for one; may be repeated",
    },
    "--min-cosine": {
        "action": "append",
        "metavar": "[OUTPUT:]X",
        "help": "least cosine similarity of the outputs, the same; may be repeated",
    },
    "--max-severity": {
        "metavar": "STEPS",
        "type": float,
        "help": "greatest error of a layer in steps of 8 bits, as the column severity has it",
    },
    "--max-drop": {
        "metavar": "X[%]",
        "help": "how much less than the float model's the main task metric may be: 0.5%% are percentage points of a share such "
        "as top_1 (the same as 0.005), else of the float model's value",
    },
    "--lower-is-better": {"action": "store_true", "help": "the main task metric is better where it is lower, as a loss is"},
    "--baseline": {
        "metavar": "RUN",
        "help": "an earlier run of the same model: outputs, task metric and suspects must not be worse",
    },
    "--max-sqnr-loss": {
        "metavar": "DB",
        "type": float,
        "help": "by how many dB an output may be below the baseline's (default: 0.5)",
    },
    "--max-new-suspects": {
        "metavar": "N",
        "type": int,
        "help": "how many layers may be suspect that were not in the baseline (default: 0)",
    },
    "--junit": {"metavar": "FILE", "help": "write the checks as JUnit XML"},
    "--summary": {"metavar": "FILE", "help": "write the checks, scores and suspects as Markdown"},
    "--html": {"metavar": "FILE", "help": "write the result as one HTML file"},
    "--csv": {"metavar": "FILE", "help": "write the result as CSV"},
    "--representative-data": {"metavar": "DATA", "help": "samples that calibrate the ranges of activations"},
    "--debug-data": {"metavar": "DATA", "help": "samples that are measured; best other ones than calibrate"},
    "--training-data": {"metavar": "DATA", "help": "samples to train on, best with labels; without, the float model teaches"},
    "--layer": {
        "action": "append",
        "default": [],
        "metavar": "NAME",
        "help": "train this Keras layer, or node of a report, quantization-aware; may be repeated (default: the whole model)",
    },
    "--suspects": {
        "metavar": "RUN.json",
        "help": "train the layers of a saved run whose RMSE/scale is above 0.7, at most --count",
    },
    "--epochs": {"metavar": "N", "type": int, "default": 5, "help": "passes over the training data (default: 5)"},
    "--batch-size": {"metavar": "N", "type": int, "default": 32, "help": "samples in a training step (default: 32)"},
    "--learning-rate": {"metavar": "X", "type": float, "default": 1e-4, "help": "Adam's learning rate (default: 0.0001)"},
    "--loss": {
        "metavar": "LOSS",
        "help": "'distillation' (the float model's outputs are the target), or a loss of tf-keras by name (default: sparse "
        "categorical cross-entropy with labels, distillation without)",
    },
    "--freeze-batch-normalization": {"action": "store_true", "help": "keep batch normalizations as they are"},
    "--strict": {
        "action": "store_true",
        "help": "fail where a layer cannot be trained quantization-aware, instead of calibrating it",
    },
    "--seed": {"metavar": "N", "type": int, "default": 0, "help": "of the order of samples and of dropout (default: 0)"},
    "--annotation-only": {"action": "store_true", "help": "do not train, only print the annotation to train elsewhere"},
    "--evaluation-data": {"metavar": "DATA", "help": "samples with labels"},
    "--quantized-form": {
        "metavar": "MODEL.tflite",
        "help": "begin with this quantized form of the model, made elsewhere, instead of making one",
    },
    "--target": {
        "action": "append",
        "metavar": "CONDITION",
        "required": True,
        "help": "what is to be reached, and what it may cost: 'accuracy >= float - 0.5%%', 'sqnr >= 20 dB', 'kl <= 0.05', "
        "'size <= int8 + 1%%', 'latency <= 5 ms', 'time <= 10 min' (of the search); joined by commas, or repeated",
    },
    "--spend": {
        "choices": SPENDING,
        "default": "float",
        "help": "what may be spent where integer operators alone do not reach the target: nodes left float, nodes in 16 bits, "
        "or nothing, as integer accelerators need it (default: float)",
    },
    "--spend-by": {
        "action": "append",
        "choices": UNITS,
        "help": "in what units it may be spent: all operators of a type, whole blocks, single nodes; may be repeated (default: "
        "all three)",
    },
    "--edgetpu": {"action": "store_true", "help": "also predict how many operators of each candidate map to the Edge TPU"},
    "priced --edgetpu": {
        "action": "store_true",
        "help": "also say what leaves the Edge TPU where a node that is suggested is left float: the graph is cut there",
    },
    "convert --edgetpu": {
        "action": "store_true",
        "help": "make one model for the Edge TPU compiler: integers throughout, a batch of 1, dense layers per tensor, what "
        "the device lacks as what it has; and predict what will map",
    },
    "--explore": {"action": "store_true", "help": "go on where the target is met, to see the whole front"},
    "--no-report": {"action": "store_true", "help": "do not measure before and after layer by layer, write no report"},
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
    "--form": {
        "action": "append",
        "metavar": "FORM",
        "help": "form of the model to make, beside float; may be repeated. One of: dynamic_range, float16, int8 (float where "
        "it must be), full_integer_uint8, full_integer_int8, int16x8 (default: all but the last)",
    },
    "--class-names": {"metavar": "FILE", "help": "text file with the name of each class in a line, as the outputs have them"},
    "--predictions": {
        "metavar": "N",
        "type": int,
        "default": 12,
        "help": "draw the first N samples, and the first N on which a form answers otherwise than float (default: 12)",
    },
    "ptq --seconds": {
        "metavar": "S",
        "type": float,
        "default": 1.0,
        "help": "how long each model is timed; 0: not at all (default: 1)",
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
        "help": "column that ranks the layers: rmse_over_scale, severity (comparable between all kinds of layers, and apart "
        "from errors of the layers before), rmse, sqnr_db, cosine, mse, mre, max_abs_error... (default: rmse_over_scale where "
        "that says all, else severity)",
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
    "--delegate": {
        "metavar": "LIBRARY",
        "help": "shared library of a delegate to run the quantized model on; edgetpu: the Edge TPU's on this system",
    },
    "--delegate-option": {
        "action": "append",
        "default": [],
        "metavar": "KEY=VALUE",
        "help": "option of the delegate; may be repeated",
    },
    "--against": {
        "metavar": "KERNELS",
        "help": "kernels to compare with: auto, builtin, reference, a runtime such as ai_edge_litert, or RUNTIME:KERNELS "
        "(default: reference)",
    },
    "--against-delegate": {"metavar": "LIBRARY", "help": "shared library of a delegate to compare with, or edgetpu"},
    "--against-delegate-option": {
        "action": "append",
        "default": [],
        "metavar": "KEY=VALUE",
        "help": "option of that delegate; may be repeated",
    },
    "--fail-on-difference": {
        "metavar": "STEPS",
        "type": float,
        "help": "exit with code 10 where a result differs by more than so many quantization steps, or a kernel is wrong",
    },
    "--from": {
        "dest": "from_tensors",
        "nargs": "+",
        "action": "extend",
        "metavar": "TENSOR",
        "help": "cut behind these tensors: names, as a report has them, or numbers (default: the model's inputs)",
    },
    "--to": {
        "dest": "to_tensors",
        "nargs": "+",
        "action": "extend",
        "metavar": "TENSOR",
        "help": "cut until these tensors (default: the model's outputs)",
    },
    "--operator": {
        "action": "append",
        "metavar": "NODE",
        "help": "cut out the operator with this output tensor, at this position, or the one of this type; may be repeated",
    },
    "--every-operator": {"action": "store_true", "help": "cut out each operator by itself"},
    "--cumulative": {
        "action": "store_true",
        "help": "feed each cut also what the cuts before it gave on the side that is tested, and judge that (default: "
        "isolated, each on what the reference gave)",
    },
    "--max-difference": {
        "metavar": "X",
        "type": float,
        "help": "largest difference that passes, in quantization steps of integers and real units of floats (default, where no "
        "limit is given: 1 step; of floats that no step belongs to a relative RMSE of 1e-4)",
    },
    "extract --min-cosine": {"metavar": "X", "type": float, "help": "least cosine similarity that passes"},
    "--min-snr": {"metavar": "DB", "type": float, "help": "least ratio of signal to error that passes, in dB"},
    "--min-psnr": {"metavar": "DB", "type": float, "help": "least ratio of the reference's range to the error, in dB"},
    "--max-not-finite": {
        "metavar": "N",
        "type": int,
        "default": 0,
        "help": "how many values may be NaN or infinite on one side (default: 0)",
    },
    "--no-bisect": {"action": "store_true", "help": "do not look for the smallest part that still fails"},
    "--signature": {"metavar": "KEY", "help": "signature to run (default: the main subgraph)"},
    "--workers": {"metavar": "N", "type": int, "help": "interpreters at once (default: one per processor)"},
    "--threads": {"metavar": "N", "type": int, "default": 1, "help": "threads of each interpreter (default: 1)"},
    "--time-limit": {
        "metavar": "SECONDS",
        "type": float,
        "default": 300.0,
        "help": "for each sample; a model that takes longer is ended (default: 300)",
    },
    "--no-isolation": {
        "action": "store_true",
        "help": "run models in this process, and not in processes that may crash without harm",
    },
    "--no-progress": {"action": "store_true", "help": "no progress bars"},
    "--debug": {"action": "store_true", "help": "show the traceback of an error"},
    "--log-file": {"metavar": "FILE", "help": "write what is done, in detail and with the time, into this file"},
}

COMMON = ("--json", "--no-progress", "--debug", "--log-file")
RUNNING = (
    "--runtime",
    "--kernels",
    "--delegate",
    "--delegate-option",
    "--workers",
    "--threads",
    "--time-limit",
    "--no-isolation",
)
QUANTIZING = (
    "--input-type",
    "--output-type",
    "--denylisted-node",
    "--denylisted-op",
    "--per-tensor",
    "--dense-per-tensor",
    "--calibration",
)


#: Arguments that several verbs call by one name, each with its own help.
_DESTINATIONS = {"optional_model": "model", "model_or_run": "model", "converted model": "model", "edgetpu_model": "model",
                 "extract --min-cosine": "--min-cosine",
                 "edgetpu --leave-float": "--leave-float", "convert --edgetpu": "--edgetpu", "priced --edgetpu": "--edgetpu",
                 "bundle --compiled": "--compiled", "bundle --delegate": "--delegate", "bundle --limit": "--limit",
                 "ptq --seconds": "--seconds",
                 "bundle --output": "--output"}  # fmt: skip


def add_options(parser: argparse.ArgumentParser, names: Iterable[str], **words: str) -> None:
    """Adds options by their names; ``words`` fill the braces of their help."""
    for name in names:
        keywords = dict(_OPTIONS[name])
        keywords["help"] = keywords["help"].format(**words) if words and "{" in keywords["help"] else keywords["help"]
        parser.add_argument(_DESTINATIONS.get(name, name), **keywords)


def backend_of(arguments: argparse.Namespace) -> Backend:
    """Returns which code runs the models.

    Raises:
        OptionError: For a delegate option that is not ``key=value``.
    """
    # Here, so that completing a word needs none of it.
    from tflite_qdebug.collect import Backend
    from tflite_qdebug.delegates import delegates_of

    delegates = delegates_of(arguments.delegate, arguments.delegate_option)
    isolate = False if arguments.no_isolation else None
    return Backend(
        arguments.runtime,
        arguments.kernels,
        delegates,
        arguments.workers,
        arguments.threads,
        isolate=isolate,
        time_limit=arguments.time_limit,
    )


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
