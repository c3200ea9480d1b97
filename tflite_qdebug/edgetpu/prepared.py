"""Makes the folder with which a device is held against the CPU: models to compile and run, samples, the CPU's values.

Four kinds of models are made. The whole model; the same with intermediate tensors as outputs too, in pieces, each with no more
of them than a compiler takes; models of the first so many operators, to bisect where a piece is refused; and one model of each
operator. All tensors get names of plain ASCII, since the Edge TPU compiler stumbles over others.
"""

from __future__ import annotations

import contextlib
import copy
import functools
import hashlib
import io
import json
import os
import re
import shutil
import string
import zipfile
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

import tflite_qdebug
from tflite_qdebug.bundling import board_modules
from tflite_qdebug.collect import Backend
from tflite_qdebug.datasets import open_dataset
from tflite_qdebug.edgetpu.partition import CUSTOM_OPERATOR, Partition, partition
from tflite_qdebug.edgetpu.prepared_folder import FORMAT, FORMAT_VERSION, MANIFEST, PreparedFolder
from tflite_qdebug.edgetpu.rules import BLOCKED
from tflite_qdebug.edit.exploded import computed_tensors, derived_tensors, explode, joined_operators
from tflite_qdebug.edit.flatbuffer import (
    append_outputs,
    drop_unused_buffers,
    drop_unused_codes,
    drop_unused_tensors,
    pack,
    require_single_subgraph,
    unpack,
    with_renamed,
)
from tflite_qdebug.edit.static_shapes import with_static_shapes
from tflite_qdebug.errors import DatasetError, ModelError, OptionError, OutputError
from tflite_qdebug.files import write_atomically
from tflite_qdebug.interpreter import Interpreter
from tflite_qdebug.model import Model, Operator, Tensor, refuses_broken_models
from tflite_qdebug.progress import track
from tflite_qdebug.record import encoded
from tflite_qdebug.workers import map_samples

__all__ = ["prepare_for_device"]

# What a piece's intermediate outputs may take together. On the device stand 8 MB for parameters and activations.
_MOST_BYTES = 4 << 20
_NAME_WIDTH = 48
_BOARD = "board.zip"


@refuses_broken_models
def prepare_for_device(
    model: Any,
    dataset: Any,
    folder: str | os.PathLike[str],
    *,
    backend: Backend | None = None,
    limit: int = 8,
    outputs: int = 16,
    prefixes: int = 16,
    progress: bool | None = None,
) -> PreparedFolder:
    """Writes a folder with all that is needed to find the first layer that a device computes otherwise than the CPU.

    In it ``compile.sh`` calls the Edge TPU compiler for each model, ``compare.py`` runs the comparison where numpy and an
    interpreter are all there is, and ``manifest.json`` names every file with its hash.

    Args:
        model: Path, bytes or something with ``data``: a quantized model with one subgraph. A batch of any size becomes one of
            1, which is noted; other sizes must not be open.
        dataset: Anything that `open_dataset` takes.
        folder: Where to; must not exist or be empty.
        backend: Its runtime and isolation are taken; the kernels are the reference kernels in any case. None: the defaults.
        limit: Take the first so many samples; their values of all tensors go into the folder.
        outputs: How many intermediate tensors one model may have as outputs.
        prefixes: How many models of the first so many operators to make, evenly spread.
        progress: As in `progress.track`.

    Raises:
        ModelError: For a model that has been compiled already, has open sizes, several subgraphs, or nothing to compare.
        OptionError: For counts below 1 (of prefixes: below 0).
        DatasetError: For a wrong sample or an empty dataset.
        InterpreterError: Where the reference kernels do not run the model.
        OutputError: Where the folder is not empty or cannot be written.
    """
    for name, count, least in (("outputs", outputs, 1), ("prefixes", prefixes, 0)):
        if isinstance(count, bool) or not isinstance(count, int) or count < least:
            raise OptionError(f"got {name}={count!r}, expected {least} or more")
    given = Model(getattr(model, "data", model))
    source, changes = _checked(given)
    name = Path(model).name if isinstance(model, (str, os.PathLike)) else "model"
    opened = open_dataset(dataset, source.input_specs(), "debug dataset", limit)
    with _made_whole(Path(folder)) as draft:
        writer = _Writer(source, given.sha256, draft)
        notes = [*changes, *writer.write_reference(opened, backend or Backend(), progress)]
        writer.write_models(outputs, prefixes)
        writer.write_scripts()
        writer.write_manifest(name, opened.description, notes)
    return PreparedFolder(folder)


def _checked(model: Model) -> tuple[Model, tuple[str, ...]]:
    """Returns the model for a batch of 1, and what had to be changed for that, in sentences; refuses what cannot be prepared.

    Raises:
        ModelError: As `prepare_for_device` has it.
    """
    require_single_subgraph(model, "edgetpu prepare")
    if any(operator.name == CUSTOM_OPERATOR for operator in model.main.operators):
        raise ModelError(
            f"got a model with the operator {CUSTOM_OPERATOR}, which has been compiled for the Edge TPU already; expected the "
            "one that was given to the compiler"
        )
    changes: tuple[str, ...] = ()
    if any(-1 in tensor.shape for tensor in model.main.tensors):
        content, changes = with_static_shapes(model)
        model = Model(content)
    dynamic = [tensor for tensor in model.main.tensors if -1 in tensor.shape]
    if dynamic:
        raise ModelError(
            f"got tensor {dynamic[0].name!r} of shape {dynamic[0].shape}, expected no open sizes, which no compiler for a "
            "device takes; convert the model with a batch of 1"
        )
    if not computed_tensors(model.main):
        raise ModelError("the model has no operator whose result could be compared: all computes from constants alone")
    return model, changes


@contextlib.contextmanager
def _made_whole(folder: Path) -> Iterator[Path]:
    """Gives a folder to write into, which gets its name once all is in it.

    Raises:
        OutputError: Where the folder is not empty, or the disk refuses.
    """
    draft = folder.with_name(f"{folder.name}.{os.getpid()}.partial")
    try:
        if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
            raise OutputError(f"{folder} exists and is not an empty folder: choose another or remove it")
        draft.mkdir(parents=True)
        try:
            yield draft
            if folder.exists():
                folder.rmdir()
            draft.replace(folder)
        finally:
            shutil.rmtree(draft, ignore_errors=True)
    except OSError as error:
        if isinstance(error, OutputError):
            raise
        raise OutputError(f"cannot write the folder {folder}: {error.strerror or error}") from error


def plain_name(index: int, name: str) -> str:
    """Returns a name of letters, digits and underscores for a tensor, unlike that of any other."""
    plain = re.sub(r"[^A-Za-z0-9]+", "_", name).strip("_")
    return f"t{index:04d}_{plain[-_NAME_WIDTH:].strip('_')}".rstrip("_")


class _Recorder:
    """Runs the model on the reference kernels and writes the values of all tensors."""

    def __init__(self, exposed: bytes, backend: Backend, folder: Path, tensors: Sequence[int]) -> None:
        self._interpreter: Interpreter = backend.open(exposed)
        self._folder, self._tensors = folder, tensors

    def write(self, sample: Any) -> tuple[str, str, dict[str, Any]]:
        """Runs one sample; returns file, hash and what ran."""
        interpreter = self._interpreter
        interpreter.reset_variables()
        try:
            interpreter.feed(sample.inputs)
            values: dict[str, Any] = {str(info.index): interpreter.read(info.index) for info in interpreter.inputs}
            interpreter.invoke(sample.inputs)
        except DatasetError as error:
            raise DatasetError(f"sample {sample.index}: {error}") from error
        values.update((str(index), interpreter.read(index)) for index in self._tensors)
        content = io.BytesIO()
        np.savez(content, **values)
        name = f"reference/{sample.index:05d}.npz"
        write_atomically(self._folder / name, content.getvalue())
        return name, hashlib.sha256(content.getvalue()).hexdigest(), interpreter.provenance()


class _Writer:
    """Writes the parts of the folder and remembers them for the manifest."""

    def __init__(self, source: Model, sha256: str, folder: Path) -> None:
        self.source, self.sha256, self.folder = source, sha256, folder
        self.model = Model(_without_metadata(with_renamed(source, plain_name)))
        self.graph = self.model.main
        self.partition: Partition = partition(source)
        computed = computed_tensors(self.graph)
        self.tensors = list(dict.fromkeys(index for _, index in computed))
        self.outputs_of: dict[int, list[int]] = {}
        for operator, index in computed:
            self.outputs_of.setdefault(operator.index, []).append(index)
        self.files: dict[str, str] = {}
        self.samples: list[str] = []
        self.models: list[dict[str, Any]] = []
        self.reference: dict[str, Any] = {}

    def _write(self, name: str, content: bytes) -> None:
        write_atomically(self.folder / name, content)
        self.files[name] = hashlib.sha256(content).hexdigest()

    # ------------------------------------------------------------------------------------------------------- the values

    def write_reference(self, dataset: Any, backend: Backend, progress: bool | None) -> list[str]:
        """Writes each sample's inputs and the CPU's values of all tensors; returns notes."""
        backend = backend._replace(kernels="reference", delegates=())
        unpacked = unpack(self.model)
        append_outputs(unpacked, self.tensors)
        opened = functools.partial(_Recorder, pack(unpacked), backend, self.folder, self.tensors)
        pool = backend.pool(opened, "computing the reference values", count=1)
        samples = track(dataset, "computing the reference values", dataset.length, progress)
        with contextlib.closing(pool):
            for name, digest, provenance in map_samples(_Recorder.write, pool, samples):
                self.samples.append(name)
                self.files[name], self.reference = digest, provenance
        if not self.samples:
            raise DatasetError(f"the {dataset.role} yielded no samples")
        return list(pool.notes)

    # ------------------------------------------------------------------------------------------------------- the models

    def write_models(self, outputs: int, prefixes: int) -> None:
        """Writes the models of all kinds."""
        own = [index for index in self.graph.outputs if index in set(self.tensors)]
        mapped = any(placement.would_map for placement in self.partition.operators)
        self._add("model", "whole", self.model.data, self.graph.inputs, self.graph.outputs, compile_=mapped)
        others = [index for index in self.tensors if index not in own]
        unpacked, everything = unpack(self.model), range(len(self.graph.operators))
        for number, group in enumerate(self._groups(others, outputs)):
            ends = self.graph.inputs, list(dict.fromkeys([*self.graph.outputs, *group]))
            self._add(f"tapped_{number:03d}", "tapped", _part(unpacked, everything, *ends), *ends, compile_=mapped)
        for count in self._cuts(prefixes):
            self._add_prefix(unpacked, count)
        self._add_layers()

    def _add(
        self,
        name: str,
        kind: str,
        content: bytes,
        inputs: Sequence[int],
        outputs: Sequence[int],
        operators: int = 0,
        compile_: bool = True,
    ) -> None:
        self._write(f"models/{name}.tflite", content)
        entry = {"file": f"models/{name}.tflite", "kind": kind, "inputs": list(inputs), "outputs": list(outputs)}
        self.models.append(
            {**entry, "operators": operators, "compile": compile_, "compiled": f"compiled/{name}_edgetpu.tflite"}
        )

    def _groups(self, tensors: Sequence[int], most: int) -> Iterator[list[int]]:
        """Yields tensors in groups, of so many and of so many bytes at most; a larger one stands alone."""
        group: list[int] = []
        size = 0
        for index in tensors:
            bytes_ = _size(self.graph.tensors[index])
            if group and (len(group) >= most or size + bytes_ > _MOST_BYTES):
                yield group
                group, size = [], 0
            group.append(index)
            size += bytes_
        if group:
            yield group

    def _cuts(self, count: int) -> list[int]:
        """Returns after how many operators to cut, evenly spread, never before the first result or behind the last operator."""
        candidates = [number for number in range(1, len(self.graph.operators)) if self._frontier(number)]
        if count >= len(candidates):
            return candidates
        return sorted({candidates[round(place)] for place in np.linspace(0, len(candidates) - 1, count + 2)[1:-1]})

    def _frontier(self, count: int) -> list[int]:
        """Returns what the first operators hand on to the others, and the last one's results."""
        first, rest = self.graph.operators[:count], self.graph.operators[count:]
        read = {index for operator in rest for index in operator.inputs} | set(self.graph.outputs)
        made = [index for operator in first for index in self.outputs_of.get(operator.index, []) if index in read]
        return list(dict.fromkeys([*made, *self.outputs_of.get(count - 1, [])]))

    def _add_prefix(self, unpacked: Any, count: int) -> None:
        read = {index for operator in self.graph.operators[:count] for index in operator.inputs}
        ends = [index for index in self.graph.inputs if index in read], self._frontier(count)
        compile_ = any(placement.would_map for placement in self.partition.operators[:count])
        self._add(f"prefix_{count:03d}", "prefix", _part(unpacked, range(count), *ends), *ends, count, compile_)

    def _add_layers(self) -> None:
        exploded = explode(self.model, {tensor.index: tensor.shape for tensor in self.graph.tensors})
        unpacked = unpack(Model(exploded.data))
        main = unpacked.subgraphs[0]
        fed = dict(zip(map(int, main.inputs), exploded.inputs, strict=True))
        for position, index in fed.items():
            main.tensors[position].name = self.graph.tensors[index].name.encode()
        joined = joined_operators(self.graph)
        for number, outputs in self.outputs_of.items():
            if number in joined:
                continue
            operators = self._with_derived(number)
            read = {int(index) for operator in operators for index in main.operators[operator].inputs}
            inputs = [position for position in fed if position in read]
            placement = self.partition.operators[number]
            compile_ = placement.would_map or placement.reason == BLOCKED
            content = _part(unpacked, operators, inputs, outputs)
            self._add(f"layer_{number:03d}", "layer", content, [fed[i] for i in inputs], outputs, number, compile_)

    def _with_derived(self, number: int) -> list[int]:
        """Returns the positions of an operator, and of those that compute what it reads from constants and shapes alone."""
        derived = derived_tensors(self.graph)
        found, waiting = set[int](), [number]
        while waiting:
            operator = self.graph.operators[waiting.pop()]
            found.add(operator.index)
            waiting += [self.graph.producers[index].index for index in operator.inputs if index in derived]
        return sorted(found)

    # ------------------------------------------------------------------------------------------------------ all the rest

    def write_scripts(self) -> None:
        """Writes what compiles, what compares where only an interpreter is, and a word on both."""
        names = " ".join(Path(model["file"]).stem for model in self.models if model["compile"])
        self._write("compile.sh", string.Template(_COMPILE).substitute(names=names).encode())
        self._write("compare.py", _COMPARE.encode())
        self._write("README.txt", _README.encode())
        self._write(_BOARD, board_archive())
        (self.folder / "compile.sh").chmod(0o755)

    def write_manifest(self, name: str, data: str, notes: Sequence[str]) -> None:
        """Writes the manifest, last of all."""
        manifest = {
            "format": FORMAT,
            "format_version": FORMAT_VERSION,
            "tflite_qdebug": tflite_qdebug.__version__,
            "model": {"name": name, "sha256": self.sha256},
            "data": data,
            "reference": self.reference,
            "inputs": list(self.graph.inputs),
            "outputs": list(self.graph.outputs),
            "tensors": [self._described(index) for index in dict.fromkeys([*self.graph.inputs, *self.tensors])],
            "operators": [self._described_operator(operator) for operator in self.graph.operators],
            "models": self.models,
            "samples": self.samples,
            "predicted": list(self.partition.summary()),
            "notes": list(notes),
            "files": self.files,
        }
        content = json.dumps(encoded(manifest), indent=1, allow_nan=False).encode()
        write_atomically(self.folder / MANIFEST, content)

    def _described(self, index: int) -> dict[str, Any]:
        tensor, named = self.graph.tensors[index], self.source.main.tensors[index]
        return {
            "index": index,
            "name": named.name,
            "plain": tensor.name,
            "dtype": str(tensor.dtype),
            "shape": list(tensor.shape),
            "step": self._step(tensor),
        }

    def _step(self, tensor: Tensor) -> float | None:
        producer = self.graph.producers.get(tensor.index)
        if producer is not None and producer.name == "DEQUANTIZE":
            tensor = self.graph.tensors[producer.inputs[0]]
        if not tensor.is_quantized or tensor.quantization is None or tensor.quantization.scale.size != 1:
            return None
        return float(tensor.quantization.scale.ravel()[0])

    def _described_operator(self, operator: Operator) -> dict[str, Any]:
        known = {*self.graph.inputs, *self.tensors} - derived_tensors(self.graph)
        placement = self.partition.operators[operator.index]
        return {
            "index": operator.index,
            "type": operator.name,
            "node": placement.output,
            "inputs": [index for index in operator.inputs if index in known],
            "outputs": self.outputs_of.get(operator.index, []),
            "mapped": placement.mapped,
            "why": placement.words or placement.reason,
        }


def _size(tensor: Tensor) -> int:
    return int(np.prod(tensor.shape, dtype=np.int64)) * tensor.dtype.itemsize


def _without_metadata(data: bytes) -> bytes:
    """Returns the model without signatures and metadata, which speak of inputs and outputs that its parts have not."""
    unpacked = unpack(Model(data))
    unpacked.signatureDefs, unpacked.metadata, unpacked.metadataBuffer = None, None, None
    drop_unused_buffers(unpacked)
    return pack(unpacked)


def _part(unpacked: Any, operators: Iterable[int], inputs: Sequence[int], outputs: Sequence[int]) -> bytes:
    """Returns some operators of an unpacked model, which stays as it is, as a model of their own, with what they need alone.

    Args:
        unpacked: The model.
        operators: Positions.
        inputs: Tensors; they get other numbers in the part.
        outputs: Likewise.
    """
    part, main = copy.copy(unpacked), copy.copy(unpacked.subgraphs[0])
    part.subgraphs, part.signatureDefs = [main], None
    main.operators = [copy.copy(main.operators[position]) for position in operators]
    main.tensors = [copy.copy(tensor) for tensor in main.tensors]
    main.inputs, main.outputs = np.array(inputs, np.int32), np.array(outputs, np.int32)
    drop_unused_tensors(part)
    drop_unused_codes(part)
    return pack(part)


def board_archive() -> bytes:
    """Returns what runs a prepared folder as a zip file that Python imports from; the same whenever it is made."""
    root = Path(tflite_qdebug.__file__).parent
    content = io.BytesIO()
    with zipfile.ZipFile(content, "w", zipfile.ZIP_DEFLATED) as archive:
        for path in [
            root / "__init__.py",
            *board_modules([root / "edgetpu" / "__init__.py", root / "edgetpu" / "device_main.py"]),
        ]:
            name = f"tflite_qdebug/{path.relative_to(root).as_posix()}"
            if name not in archive.namelist():
                archive.writestr(zipfile.ZipInfo(name), path.read_bytes(), zipfile.ZIP_DEFLATED)
    return content.getvalue()


_COMPILE = """\
#!/bin/sh
# Compiles the models of this folder for the Edge TPU, where edgetpu_compiler is installed: sh compile.sh [COMPILER OPTIONS]
# A model that is compiled already is passed over, so it can be run again; one that the compiler refuses is told, and the
# others go on. What the compiler says stands in compiled/NAME.log.
cd "$$(dirname "$$0")" || exit 1
if ! command -v edgetpu_compiler >/dev/null; then
  echo "edgetpu_compiler is not installed: see coral.ai/docs/edgetpu/compiler" >&2
  exit 1
fi
rm -rf compiled/partial
mkdir -p compiled/partial || exit 1
refused=0
for name in $names; do
  [ -s "compiled/$${name}_edgetpu.tflite" ] && continue
  edgetpu_compiler -s "$$@" -o compiled/partial "models/$$name.tflite" >"compiled/$$name.log" 2>&1
  if [ -s "compiled/partial/$${name}_edgetpu.tflite" ] && mv "compiled/partial/$${name}_edgetpu.tflite" compiled; then
    echo "compiled: $$name"
  else
    refused=$$((refused + 1))
    echo "refused:  $$name (see compiled/$$name.log)" >&2
  fi
done
rm -rf compiled/partial
echo "$$refused models were refused; now, where the device is: python3 compare.py --delegate edgetpu"
"""

_COMPARE = '''\
"""Holds this device against the CPU: python3 compare.py --delegate edgetpu (needs numpy and an interpreter, nothing else)."""

import os
import sys

HERE = os.path.dirname(os.path.abspath(__file__))
sys.path.insert(0, os.path.join(HERE, "board.zip"))

from tflite_qdebug.edgetpu.device_main import main  # noqa: E402

if __name__ == "__main__":
    sys.exit(main([HERE, *sys.argv[1:]]))
'''

_README = """\
Models, samples and the CPU's values (reference kernels) with which a device is held against the CPU, layer by layer.

1. Where edgetpu_compiler is installed (x86-64 Linux):   sh compile.sh
2. Copy this folder to where the device is; there:       python3 compare.py --delegate edgetpu
   It needs Python 3.7 or newer, numpy and tflite-runtime, ai-edge-litert or TensorFlow, and no installation of this package.
   Where the package is installed:                       tflite-qdebug edgetpu compare . --delegate edgetpu
3. Back on the host, to look at the result again:        tflite-qdebug edgetpu compare . --result result.json

models/tapped_*   the whole model with intermediate tensors as outputs too, in pieces
models/prefix_*   the first so many operators, to bisect where the compiler refuses such a piece
models/layer_*    each operator alone; it is fed with the CPU's values
reference/        for each sample the inputs and every tensor's value, by its index in the model
manifest.json     what each file is, with its hash
"""
