"""The steps ``edgetpu prepare`` and ``edgetpu compare``: is a device right, and if not, which layer is it?"""

from __future__ import annotations

import argparse
from pathlib import Path

from tflite_qdebug.cli.kernels import KernelsDifferError
from tflite_qdebug.cli.output import Folder, Screen
from tflite_qdebug.cli.verbs import data, progress
from tflite_qdebug.collect import Backend
from tflite_qdebug.delegates import delegates_of
from tflite_qdebug.edgetpu.device_comparison import compare_with_device
from tflite_qdebug.edgetpu.device_main import RESULT, described, keep_partial
from tflite_qdebug.edgetpu.device_record import DeviceComparison
from tflite_qdebug.edgetpu.prepared import prepare_for_device
from tflite_qdebug.edgetpu.prepared_folder import PreparedFolder
from tflite_qdebug.errors import ModelError, OptionError
from tflite_qdebug.reports.tables import write_columns
from tflite_qdebug.wording import byte_size

#: Samples whose values go into a prepared folder, where ``--limit`` does not say.
SAMPLES = 8


def prepare_device(arguments: argparse.Namespace, screen: Screen) -> None:
    """Writes the folder to be compiled and run.

    Raises:
        OptionError: Without a folder to write.
    """
    if not arguments.output:
        raise OptionError("--output is needed: the folder to write, which must not exist or be empty")
    folder = prepare_for_device(
        arguments.quantized_model,
        data(arguments, "debug"),
        arguments.output,
        backend=_backend(arguments),
        limit=arguments.limit or SAMPLES,
        outputs=arguments.outputs,
        prefixes=arguments.prefixes,
        progress=progress(arguments),
    )
    manifest = folder.manifest
    size = sum(path.stat().st_size for path in Path(folder.path).rglob("*") if path.is_file())
    kinds = [model.kind for model in folder.models]
    screen.say(
        f"{folder.path}: {byte_size(size)}, {len(folder.samples)} samples; the whole model, {kinds.count('tapped')} with "
        f"intermediate outputs, {kinds.count('prefix')} prefixes, {kinds.count('layer')} of one operator each"
    )
    screen.notes(manifest["notes"])
    for line in manifest["predicted"]:
        screen.say(f"predicted: {line}")
    screen.say(f"next, where edgetpu_compiler is installed: sh {folder.path}/compile.sh")
    screen.say(f"then, where the device is: python3 {folder.path}/compare.py --delegate edgetpu")
    screen.result({name: manifest[name] for name in ("model", "models", "samples", "predicted", "notes", "reference")})


def _backend(arguments: argparse.Namespace) -> Backend:
    isolate = False if arguments.no_isolation else None
    return Backend(arguments.runtime, workers=1, isolate=isolate, time_limit=arguments.time_limit)


def compare_device(arguments: argparse.Namespace, screen: Screen) -> None:
    """Runs the prepared folder, or shows what was measured elsewhere.

    Raises:
        KernelsDifferError: Where the device differs by more than ``--fail-on-difference`` allows, after all is written.
    """
    folder = PreparedFolder(arguments.prepared)
    output = Folder(arguments.output or (None if arguments.result else arguments.prepared))
    if arguments.result:
        result = DeviceComparison.load(arguments.result)
        if result.prepared != folder.sha256:
            raise ModelError(
                f"{arguments.result} was not measured with {folder.path}: the hash of its manifest is another; expected the "
                "result of this folder"
            )
    else:
        result = _measured(arguments, screen, folder, output)
    if output.path is not None:
        result.save(output.path / RESULT)
        write_columns(result.columns(), output.path / "layers.csv")
    screen.say(f"{result.model}: {len(result.rows)} operators, {result.samples} samples; {described(result)}")
    screen.table(*result.table(result.worst(arguments.count)))
    for line in result.summary():
        screen.say(line)
    screen.notes(result.notes)
    if output.path is not None:
        screen.say(f"results: {output.path}/{RESULT}, layers.csv")
    screen.result(result.to_dict())
    limit = arguments.fail_on_difference
    if limit is not None and result.exceeds(limit):
        row = result.first_fault or result.first
        raise KernelsDifferError(
            f"the device differs from the CPU by up to {result.largest_steps():g} steps, more than --fail-on-difference "
            f"{limit:g} allows" + (f"; look at {row.title}" if row else "")
        )


def _measured(arguments: argparse.Namespace, screen: Screen, folder: PreparedFolder, output: Folder) -> DeviceComparison:
    try:
        return compare_with_device(
            folder,
            _backend(arguments)._replace(
                kernels=arguments.kernels,
                delegates=delegates_of(arguments.delegate, arguments.delegate_option),
                threads=arguments.threads,
            ),
            tolerance=arguments.tolerance,
            compiled=False if arguments.uncompiled else None,
            bisect=arguments.bisect,
            progress=progress(arguments),
        )
    except BaseException as error:
        if output.path is not None:
            for line in keep_partial(error, str(output.path / f"partial_{RESULT}")):
                screen.say(line)
        raise
