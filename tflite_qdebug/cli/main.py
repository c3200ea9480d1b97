"""The parser, and the one place where an error becomes a message and an exit code."""

from __future__ import annotations

import argparse
import contextlib
import os
import sys
import traceback
from collections.abc import Sequence
from typing import Any

from tflite_qdebug import __version__
from tflite_qdebug.cli import completion, logs
from tflite_qdebug.cli.options import COMMON, DATA_FORMS, QUANTIZING, RUNNING, add_options
from tflite_qdebug.errors import QDebugError, did_you_mean

__all__ = ["main"]

_EXIT_CODES = """\
exit codes: 0 done, 1 unforeseen error, 2 wrong option, 3 model, 4 dataset, 5 conversion, 6 interpreter or delegate,
7 package missing, 8 result could not be written, 9 metric, 10 kernels differ (--fail-on-difference, limits of extract),
11 gate failed, 12 not as asked on the Edge TPU (edgetpu check), 130 interrupted
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
  tflite-qdebug convert model.keras --representative-data samples.npz --edgetpu --input-type uint8 --output models
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
    "ptq": """\
examples:
  tflite-qdebug ptq example --output ptq
  tflite-qdebug ptq model.keras --representative-data calibration.npz --evaluation-data test.npz --output ptq
  tflite-qdebug ptq saved_model/ --representative-data 'tfds:mnist?split=train[:100]&scale=0.0039' \\
      --evaluation-data 'tfds:mnist?split=test&scale=0.0039' --form int8 --form full_integer_uint8 --output ptq
""",
    "compare-kernels": """\
examples:
  tflite-qdebug compare-kernels int8.tflite --debug-data debug.npz
  tflite-qdebug compare-kernels int8.tflite --debug-data debug.npz --runtime tensorflow --against ai_edge_litert
  tflite-qdebug compare-kernels int8.tflite --debug-data debug.npz --kernels builtin --against-delegate libdelegate.so \\
      --fail-on-difference 1
""",
    "extract": """\
examples:
  tflite-qdebug extract int8.tflite --from 'model/conv1/Relu' --to 'model/conv4/Relu' --output part
  tflite-qdebug extract int8.tflite --every-operator --debug-data debug.npz --limit 8
  tflite-qdebug extract int8.tflite --operator 'model/head/MatMul' --debug-data debug.npz --delegate libdelegate.so \\
      --delegate-option key=value --max-difference 1
  tflite-qdebug extract int8.tflite --debug-data debug.npz --runtime ai_edge_litert --against tensorflow:reference
""",
    "fix": """\
examples:
  tflite-qdebug fix example --target 'agreement >= 99%' --output fixed
  tflite-qdebug fix results --target 'accuracy >= float - 0.5%, time <= 10 min'
  tflite-qdebug fix float.tflite --representative-data calibration.npz --debug-data debug.npz --evaluation-data test.npz \\
      --target 'accuracy >= float - 1%, size <= int8 + 1%' --output fixed
  tflite-qdebug fix model.keras --representative-data calibration.npz --debug-data debug.npz --target 'sqnr >= 20 dB' \\
      --spend nothing --edgetpu --output fixed
""",
    "sensitivity": """\
examples:
  tflite-qdebug sensitivity results
  tflite-qdebug sensitivity results --mode weights --mode activation --rank-by cosine
  tflite-qdebug sensitivity results --debug-data test.npz --metric top_1 --rank-by top_1 --limit 200
""",
    "accumulated-error": """\
examples:
  tflite-qdebug accumulated-error results
  tflite-qdebug accumulated-error results --quantize weights --quantize '["model/conv1/Relu", "model/conv2/Relu"]'
  tflite-qdebug accumulated-error results --leave-float 'model/conv1/Relu' --average
  tflite-qdebug accumulated-error results --rank-by mre
""",
    "sensitivity-analysis": """\
examples:
  tflite-qdebug sensitivity-analysis results
  tflite-qdebug sensitivity-analysis results --rank-by cosine --threshold 0.99 --most 40
""",
    "distribution": """\
examples:
  tflite-qdebug distribution results
  tflite-qdebug distribution results --node 'model/conv1/Relu'
""",
    "channels": """\
example:
  tflite-qdebug channels results --node 'model/conv1/Relu' --count 5
""",
    "samples": """\
example:
  tflite-qdebug samples results --count 20 --rank-by cosine
""",
    "diagnose": """\
example:
  tflite-qdebug diagnose results
""",
    "runall": """\
examples:
  tflite-qdebug runall example --output results
  tflite-qdebug runall model.keras --representative-data calibration.npz --debug-data debug.npz --evaluation-data test.npz \\
      --output results
  tflite-qdebug runall --float float.tflite --quantized int8.tflite --debug-data debug.npz --output results
  tflite-qdebug runall results
""",
    "report": """\
examples:
  tflite-qdebug report results
  tflite-qdebug report results --output report.html --charts figures
""",
    "gate": """\
examples:
  tflite-qdebug gate results --min-sqnr 25 --max-drop 0.5%
  tflite-qdebug gate results --min-sqnr output:25 --max-drop 0.5% --baseline last_week --junit gate.xml --summary gate.md
  tflite-qdebug gate results --min-sqnr 'StatefulPartitionedCall:0:25' --min-cosine 0.99 --max-severity 3
""",
    "edgetpu check": """\
examples:
  tflite-qdebug edgetpu check int8.tflite
  tflite-qdebug edgetpu check int8.tflite --compiled int8_edgetpu.tflite --log int8_edgetpu.log
  tflite-qdebug edgetpu check int8.tflite --leave-float 'model/conv1/Relu' --csv placement.csv
  tflite-qdebug edgetpu check results --prices
  tflite-qdebug edgetpu check int8.tflite --most-on-cpu 2 --json
""",
    "edgetpu prepare": """\
examples:
  tflite-qdebug edgetpu prepare int8.tflite --debug-data debug.npz --output device
  sh device/compile.sh                                   where edgetpu_compiler is installed
  python3 device/compare.py --delegate edgetpu           where the device is: numpy and an interpreter wheel are enough
""",
    "edgetpu compare": """\
examples:
  tflite-qdebug edgetpu compare device --delegate edgetpu
  tflite-qdebug edgetpu compare device --kernels builtin --tolerance 2
  tflite-qdebug edgetpu compare device --delegate libdelegate.so --uncompiled --bisect --fail-on-difference 1
  tflite-qdebug edgetpu compare device --result result.json
""",
    "bundle": """\
examples:
  tflite-qdebug bundle results
  tflite-qdebug bundle results --limit 200 --output board.pyz
  tflite-qdebug bundle results --compiled int8_edgetpu.tflite --delegate edgetpu
on the board, with nothing but numpy and tflite-runtime or ai-edge-litert:
  python3 results.pyz
""",
    "merge": """\
examples:
  tflite-qdebug merge results results_result.jsonl
  tflite-qdebug merge results coral.jsonl --name 'Coral Dev Board'
""",
    "latency": """\
examples:
  tflite-qdebug latency results
  tflite-qdebug latency results --kernels builtin --threads 4 --count 30
""",
    "diff": """\
examples:
  tflite-qdebug diff before after
  tflite-qdebug diff before after --html diff.html --csv diff.csv
""",
    "completion": """\
examples:
  eval "$(tflite-qdebug completion bash)"        in this shell; in ~/.bashrc for all to come
  eval "$(tflite-qdebug completion zsh)"         the same in ~/.zshrc
""",
    "model-explorer": """\
example:
  tflite-qdebug model-explorer results --output overlay
  model-explorer int8.tflite --node_data_paths=overlay/quantized_severity.json
""",
}


class _Parser(argparse.ArgumentParser):
    """Tells the nearest name of what is misspelled, and shows the usage of one verb alone."""

    def parse_args(self, *arguments: Any, **keywords: Any) -> Any:
        known, unknown = self.parse_known_args(*arguments, **keywords)
        if unknown:
            verb = self._verbs().get(getattr(known, "verb", ""), self)
            names = [name for action in verb._actions for name in action.option_strings]  # noqa: SLF001
            first = unknown[0].partition("=")[0]
            verb.error(f"unrecognized arguments: {' '.join(unknown)}.{did_you_mean(first, names)}")
        return known

    def _check_value(self, action: argparse.Action, value: Any) -> None:
        try:
            super()._check_value(action, value)
        except argparse.ArgumentError as error:
            hint = did_you_mean(str(value), list(map(str, action.choices or ())))
            raise argparse.ArgumentError(
                action, error.message.replace(" (", f".{hint} (", 1) if hint else error.message
            ) from None

    def _verbs(self) -> dict[str, argparse.ArgumentParser]:
        kind = argparse._SubParsersAction  # noqa: SLF001
        found = (action.choices for action in self._actions if isinstance(action, kind))
        return next((dict(choices) for choices in found), {})


def parser() -> argparse.ArgumentParser:
    """Returns the parser of the command line."""
    top = _Parser(
        prog="tflite-qdebug",
        description="Debugs the quantization of TensorFlow Lite models: which layers lose accuracy, and what to change.",
        epilog="start with:\n  tflite-qdebug demo\n  tflite-qdebug run --help\n\n" + _EXIT_CODES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    top.add_argument("--version", action="version", version=f"tflite-qdebug {__version__}")
    verbs = top.add_subparsers(dest="verb", metavar="VERB", required=True)
    kinds = "float, float16, dynamic_range, int8, full_integer, int16x8"

    def add(
        name: str, words: str, options: Sequence[str], kinds: str = kinds, aliases: Sequence[str] = (), group: Any = None
    ) -> None:
        forms = DATA_FORMS + "\n" if any(option.endswith("-data") for option in options) else ""
        verb = (group or verbs).add_parser(
            name.split()[-1],
            aliases=aliases,
            help=words,
            description=words[0].upper() + words[1:] + ".",
            epilog=_EPILOGS[name] + "\n" + forms + _EXIT_CODES,
            formatter_class=argparse.RawDescriptionHelpFormatter,
            allow_abbrev=False,
        )
        add_options(verb, (*options, *COMMON), kinds=kinds)
        words = "say what is done; twice: in detail, with all that TensorFlow says"
        verb.add_argument("-v", "--verbose", action="count", default=0, help=words)

    add("demo", "the whole way on the built-in example, in less than a minute", ["--output"])
    add(
        "convert",
        "convert and calibrate once, and write quantized and debug models",
        ["converted model", "--representative-data", "--limit", "--kind", "convert --edgetpu", *QUANTIZING, "--output"],
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
            *(*RUNNING, "priced --edgetpu", "--output"),
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
        "ptq",
        "post-training quantization in all its forms: size, types, accuracy and predictions side by side",
        [
            *("model", "--representative-data", "--evaluation-data", "--form", "--metric", "--label-offset"),
            *("--lower-is-better", "--class-names", "--predictions", "--limit", "ptq --seconds", "--calibration"),
            *("--per-tensor", "--dense-per-tensor", *RUNNING, "--output"),
        ],
    )
    add(
        "compare-kernels",
        "the same model under two kernels: the difference that each operator makes, and which of the two is right",
        [
            *("quantized_model", "--debug-data", "--limit", "--signature", *RUNNING),
            *("--against", "--against-delegate", "--against-delegate-option", "--fail-on-difference", "--count", "--output"),
        ],
    )
    add(
        "extract",
        "parts of a model as models of their own, tried on two kernels, down to the smallest part that fails",
        [
            *("quantized_model", "--from", "--to", "--operator", "--every-operator", "--signature", "--debug-data", "--limit"),
            *(*RUNNING, "--against", "--against-delegate", "--against-delegate-option", "--cumulative", "--max-difference"),
            *("extract --min-cosine", "--min-snr", "--min-psnr", "--max-not-finite", "--no-bisect", "--count", "--output"),
        ],
    )
    data = ("--debug-data", "--evaluation-data", "--metric", "--label-offset", "--limit", "--memory", *RUNNING)
    add(
        "sensitivity",
        "the error at the outputs when one node alone is quantized, or one alone left float",
        ["run", "--mode", "--node", "--output-node", "--rank-by", "--lower-is-better", "--count", "priced --edgetpu", *data],
        aliases=("get-sensitivity-of-nodes",),
    )
    add(
        "accumulated-error",
        "the error at every node's output in partly quantized models",
        ["run", "--quantize", "--leave-float", "--rank-by", "--average", *data],
        aliases=("plot-acc-error",),
    )
    add(
        "sensitivity-analysis",
        "the error at the outputs as the most sensitive nodes are left float, one after another",
        ["run", "--node", "--rank-by", "--lower-is-better", "--threshold", "--most", "priced --edgetpu", *data],
    )
    add(
        "distribution",
        "histograms of weights and activations, in float and quantized",
        ["run", "--node", "--count", "--no-charts", *data],
        aliases=("plot-distribution",),
    )
    add(
        "channels",
        "a box plot for each channel of weights and activations",
        ["run", "--node", "--axis", "--count", "--no-charts", *data],
        aliases=("get-channelwise-data-distribution",),
    )
    add("samples", "the samples on which the quantized model differs most", ["run", "--rank-by", "--count", *data])
    add("diagnose", "what is wrong, why, and what to try", ["run", "priced --edgetpu", *data])
    add(
        "runall",
        "every analysis of a run, in one go, with a report at the end",
        [
            *("model_or_run", "--float", "--quantized", "--representative-data", "--debug-data", "--evaluation-data"),
            *("--signature-data", "--metric", "--label-offset", "--limit", "--kind", *QUANTIZING, "--whole-model", "--parts"),
            *("--sequence", "--criterion", "--count", "--rank-by", "--threshold", "--memory", "--no-charts", *RUNNING),
            *("priced --edgetpu", "--output"),
        ],
    )
    add("report", "one self-contained HTML file about a run", ["run", "--node", "--charts", "priced --edgetpu", "--output"])
    add(
        "gate",
        "whether a saved run is good enough, and no worse than an earlier one; exit code 11 where it is not",
        [
            *("saved_run", "--min-sqnr", "--min-cosine", "--max-severity", "--max-drop", "--lower-is-better", "--baseline"),
            *("--max-sqnr-loss", "--max-new-suspects", "--junit", "--summary"),
        ],
    )
    add(
        "fix",
        "the cheapest change of a quantized model that reaches a target, and the proof",
        [
            *("model_or_run", "--target", "--representative-data", "--debug-data", "--evaluation-data", "--quantized-form"),
            "--training-data",
            *("--metric", "--label-offset", "--spend", "--spend-by", "--edgetpu", "--explore", "--limit", "--output"),
            *("--no-report", "--per-tensor", "--dense-per-tensor"),
            *RUNNING,
        ],
    )
    words = "what an Edge TPU takes of a model, and whether it is right there"
    edgetpu = verbs.add_parser("edgetpu", help=words, description=words[0].upper() + words[1:] + ".", allow_abbrev=False)
    steps = edgetpu.add_subparsers(dest="step", metavar="STEP", required=True)
    add(
        "edgetpu check",
        "which operators run on the Edge TPU and which on the CPU, and why; nothing is compiled",
        [
            *("edgetpu_model", "edgetpu --leave-float", "--prices", "--log", "--compiled", "--runtime-version"),
            *("--multiple-subgraphs", "--most-on-cpu", "--all", "--csv"),
        ],
        group=steps,
    )
    alone = [option for option in RUNNING if option != "--workers"]
    add(
        "edgetpu prepare",
        "what is compiled and run to find the first layer that the Edge TPU computes otherwise than the CPU",
        [
            *("quantized_model", "--debug-data", "--limit", "--outputs", "--prefixes", "--runtime", "--time-limit"),
            *("--no-isolation", "--output"),
        ],
        group=steps,
    )
    add(
        "edgetpu compare",
        "the first layer in which a device differs from the CPU, in quantization steps, and whether it is at fault itself",
        [
            *("prepared", *alone, "--tolerance", "--uncompiled", "--bisect", "--result", "--fail-on-difference", "--count"),
            "--output",
        ],
        group=steps,
    )
    add(
        "bundle",
        "one archive that runs a saved run's models on a board, with nothing but an interpreter wheel",
        [
            *("saved_run", "bundle --compiled", "bundle --delegate", "--delegate-option", "bundle --limit"),
            *("--no-debug-model", "--runtime", "--workers", "bundle --output"),
        ],
    )
    add("merge", "bring what a board measured into the run and its report", ["saved_run", "results", "--name", "--count"])
    add(
        "latency",
        "what each operator of a run's quantized model takes on this machine, and what float islands cost",
        ["saved_run", "--debug-data", "--seconds", "--operator-seconds", "--count", *RUNNING],
    )
    add("diff", "what has changed between two saved runs", ["old_run", "new_run", "--count", "--html", "--csv"])
    add("model-explorer", "a saved run as node data for Model Explorer", ["saved_run", "--output"])
    add("completion", "what a shell evaluates to complete verbs, options, files and names of nodes", ["shell"])
    return top


def main(words: Sequence[str] | None = None) -> int:
    """Runs the command line and returns its exit code.

    Args:
        words: The arguments; those of the process where None.
    """
    from_shell = words is None
    words = list(sys.argv[1:] if words is None else words)
    top = parser()
    if completion.wanted():
        completion.complete(top)
    arguments = top.parse_args(words)
    arguments.words = words
    # Where a program calls, and not a shell, standard error is its own affair.
    filters = from_shell and arguments.verbose < 2
    with logs.filtered_errors(arguments.log_file) if filters else contextlib.nullcontext():
        return _guarded(arguments)


def _guarded(arguments: argparse.Namespace) -> int:
    """Runs a verb; an error becomes a message and an exit code."""
    try:
        with logs.logging_to(arguments.verbose, arguments.log_file):
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
    if arguments.verb == "completion":  # each shell that is opened waits for it
        print(completion.script(arguments.shell))
        return 0
    # Here, so that --help needs none of it.
    from tflite_qdebug.cli import (
        analyses,
        bundle,
        demo,
        diff,
        edgetpu,
        explorer,
        extract,
        fix,
        gate,
        kernels,
        ptq,
        qat,
        runs,
        verbs,
    )
    from tflite_qdebug.cli.output import Screen

    verb = {
        "demo": demo.demo,
        "convert": edgetpu.convert,
        "evaluate": verbs.evaluation,
        "run": runs.run,
        "compare-kernels": kernels.kernels,
        "extract": extract.extract,
        "qat": qat.qat,
        "ptq": ptq.ptq,
        "sensitivity": analyses.sensitivity,
        "get-sensitivity-of-nodes": analyses.sensitivity,
        "accumulated-error": analyses.curves,
        "plot-acc-error": analyses.curves,
        "sensitivity-analysis": analyses.steps,
        "distribution": analyses.distribution,
        "plot-distribution": analyses.distribution,
        "channels": analyses.channels,
        "get-channelwise-data-distribution": analyses.channels,
        "samples": analyses.samples,
        "diagnose": analyses.diagnose,
        "runall": analyses.runall,
        "report": analyses.report,
        "gate": gate.gate,
        "fix": fix.fix_model,
        "edgetpu": edgetpu.edgetpu,
        "bundle": bundle.bundle,
        "merge": bundle.merge,
        "latency": bundle.latency,
        "diff": diff.diff_runs,
        "model-explorer": explorer.explorer,
    }[arguments.verb]
    return verb(arguments, Screen(arguments.json)) or 0
