"""Makes the bundle of a saved run: one archive that a board runs with nothing but an interpreter wheel."""

from __future__ import annotations

import ast
import dataclasses
import os
import shutil
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

import tflite_qdebug
from tflite_qdebug import edit
from tflite_qdebug.analyses.layer_error import RealValued, run_debug_model
from tflite_qdebug.analyses.pairs import Pair, confirmed_match, open_pair
from tflite_qdebug.board.archive import ArchiveWriter, Bundle, Entry
from tflite_qdebug.collect import Backend, map_samples
from tflite_qdebug.datasets import Dataset, open_dataset
from tflite_qdebug.errors import DatasetError, ModelError, OptionError, OutputError, QDebugError
from tflite_qdebug.findings import Findings
from tflite_qdebug.interpreter import Delegate, Interpreter
from tflite_qdebug.match import Graph, Match, match_models
from tflite_qdebug.model import Model
from tflite_qdebug.progress import track
from tflite_qdebug.study import Setup, named_data

__all__ = ["DEFAULT_KERNELS", "KEPT", "BundleMade", "board_modules", "kept_bundle", "write_bundle"]

#: Where the folder of a run keeps what a result of each bundle is held against.
KEPT = "boards/{}.zip"
#: Samples of each set, where nothing else is said: what goes to a board should be small.
SAMPLES = 50
_PACKAGE = Path(tflite_qdebug.__file__).parent
# Speed alone: it needs numba, and where it is absent numpy does the same.
_LEFT_OUT = ("numba_kernels.py",)
#: The quantized model under the kernels that this machine takes by default: so far two kernels are apart that are both right.
DEFAULT_KERNELS = "quantized, default kernels"


@dataclasses.dataclass(frozen=True)
class BundleMade:
    """A bundle that was written.

    Attributes:
        path: Of the archive.
        id: Its hash.
        size: Bytes.
        models: What it holds.
        samples: ``{set: how many}``.
        notes: What the reader must know.
    """

    path: Path
    id: str
    size: int
    models: tuple[str, ...]
    samples: Mapping[str, int]
    notes: tuple[str, ...] = ()


def write_bundle(
    folder: str | os.PathLike[str],
    path: str | os.PathLike[str] | None = None,
    *,
    compiled: str | os.PathLike[str] | bytes | None = None,
    delegate: Delegate | None = None,
    limit: int | None = None,
    debug_model: bool = True,
    backend: Backend | None = None,
    progress: bool | None = None,
) -> BundleMade:
    """Writes the bundle of a saved run.

    It holds the quantized model, the model compiled for a delegate, the float model, and the debug model; samples of the run's
    debug data and, where it has some, of its evaluation data; the outputs that the host computes from them, with the reference
    kernels for the quantized model; and the modules that run on a board. The folder keeps what a result is held against.

    Args:
        folder: Of the run.
        path: Of the archive; None: ``NAME.pyz`` in the folder of the run.
        compiled: The quantized model as a compiler has made it for an accelerator.
        delegate: What runs the compiled model; without one, what runs the quantized model. Its library is one of the board's.
        limit: How many samples of each set, the first ones; None: fifty.
        debug_model: Whether the error of each layer is to be measured there.
        backend: What runs the models here; its kernels run the float model.
        progress: As in `progress.track`.

    Raises:
        ModelError: Where there is no run, or a model does not fit.
        DatasetError: Where the run's data cannot be read again.
        OptionError: For a limit that is none, a compiled model without a delegate, or a run whose data was an object.
        OutputError: Where the archive cannot be written.
    """
    place = Path(folder)
    place = place.parent if place.name == "run.json" else place
    if compiled is not None and delegate is None:
        raise OptionError("got a compiled model without a delegate, which it needs: --delegate edgetpu, or its library")
    if limit is not None and limit < 1:
        raise OptionError(f"got limit {limit}, expected a number of samples of 1 or more")
    maker = _Maker(place, limit or SAMPLES, backend or Backend(), progress)
    maker.add_models(compiled, delegate, debug_model)
    target = Path(path) if path is not None else place / f"{maker.name}.pyz"
    if target.is_dir():
        raise OutputError(f"{target} is a folder, expected the name of a file, such as {target / 'board.pyz'}")
    return maker.write(target)


class _Maker:
    """A bundle in the making."""

    def __init__(self, folder: Path, limit: int, backend: Backend, progress: bool | None) -> None:
        if not (folder / "run.json").exists():
            raise ModelError(f"there is no run in {folder}; expected a folder that 'tflite-qdebug run ... --output DIR' wrote")
        self._folder, self._backend, self._progress = folder, backend, progress
        self._findings, setup = Findings.load(folder), Setup.load(folder)
        self.name = folder.resolve().name
        floating = None if setup.float_model is None else folder / setup.float_model
        self._pair: Pair = open_pair(floating, folder / setup.quantized_model).select(setup.signature)
        self._scales = [self._main.tensors[index].quantization for index in self._main.inputs]
        self.sets = {"debug": self._opened(setup, setup.debug_data, "debug", limit)}
        if setup.evaluation_data is not None:
            self.sets["evaluation"] = self._opened(setup, setup.evaluation_data, "evaluation", limit)
        self._judged = "evaluation" if "evaluation" in self.sets else "debug"
        self._entries: list[Entry] = []
        self._contents: dict[str, bytes] = {}
        self._host: dict[str, str] = {}
        self._debug: edit.DebugModel | None = None
        self._notes: list[str] = []
        self._match = self._matched()

    @property
    def _main(self) -> Any:
        return self._pair.quantized.main

    def _opened(self, setup: Setup, named: str | None, which: str, limit: int) -> Dataset:
        if named is None:
            raise OptionError(
                f"the run's {which} data was an object, or none, and cannot be read again; run again with --{which}-data"
            )
        limit = min(limit, setup.limit or limit)
        specs = self._pair.quantized.input_specs()
        labels = True if which == "evaluation" else "auto"
        several = setup.signature is not None
        return open_dataset(named_data(named, which), specs, f"{which} dataset", limit, setup.signature, labels, several)

    def _matched(self) -> Match | None:
        """Returns what of the float model belongs to what of the quantized one."""
        if self._pair.floating is None:
            return None
        match = match_models(self._pair.floating, self._pair.quantized)
        first = self._samples("debug").ahead(1)[0]
        return confirmed_match(match, self._pair.floating, self._pair.quantized, first, self._backend)

    def _order(self, what: str, ours: Sequence[int], theirs: Sequence[int]) -> list[int]:
        """Returns for each of the float model's tensors the position of its counterpart; nothing where all stand alike.

        Raises:
            ModelError: Where there are not as many of them.
        """
        assert self._match is not None
        if len(ours) != len(theirs):
            raise ModelError(
                f"the float model has {len(ours)} {what}, the quantized one {len(theirs)}; expected two forms of one model"
            )
        found = [theirs.index(self._match.values[a]) for a in ours if self._match.values.get(a) in theirs]
        if len(ours) > 1 and sorted(found) != list(range(len(theirs))):
            self._notes.append(
                f"not all {what} of the float model were found in the quantized one: they are taken in their order"
            )
            return []
        return [] if found == sorted(found) else found

    def _samples(self, which: str) -> RealValued:
        return RealValued(self.sets[which], self._scales)

    def add_models(self, compiled: Any, delegate: Delegate | None, debug_model: bool) -> None:
        """Decides what is to be run."""
        needed = None if delegate is None else [delegate.library, dict(delegate.options)]
        quantized = self._pair.quantized
        steps = [_step(quantized, index) for index in self._main.outputs]
        plain = {"samples": self._judged, "steps": steps, "expected": "quantized", "kernels": "reference"}
        self._add("quantized", quantized, delegate=None if compiled is not None else needed, **plain)
        if compiled is not None:
            self._add("compiled", self._checked(Model(compiled)), delegate=needed, **plain)
        floating = self._pair.floating
        if floating is not None:
            order = self._order("outputs", Graph(floating).outputs, Graph(quantized).outputs)
            self._add(
                "float",
                floating,
                samples=self._judged,
                steps=[None] * len(floating.main.outputs),
                expected="float",
                kernels=self._backend.kernels,
                inputs=self._order("inputs", floating.main.inputs, self._main.inputs),
                outputs=[order.index(position) for position in range(len(order))],
            )
        if debug_model:
            self._add_debug()

    def _add(self, name: str, model: Model, **about: Any) -> None:
        stateful = any(tensor.is_variable for graph in model.subgraphs for tensor in graph.tensors)
        self._entries.append(Entry(name=name, sha256=model.sha256, size=len(model.data), stateful=stateful, **about))
        self._contents[name] = model.data

    def _add_debug(self) -> None:
        if self._findings.run.verify != "per_layer":
            self._notes.append("the run is of accumulated error; the bundle's debug model measures what each operator adds")
        try:
            self._debug = edit.debug_pair(self._pair.floating, self._pair.quantized, match=self._match)
        except QDebugError as error:
            self._notes.append(f"there is no debug model in the bundle: {error}")
            return
        layers = [dataclasses.asdict(layer) for layer in self._debug.layers]
        self._add("debug", Model(self._debug.data), samples="debug", layers=layers, kernels=self._backend.kernels)

    def _checked(self, compiled: Model) -> Model:
        """Refuses a compiled model that was not made from the quantized one, as far as that can be seen.

        Raises:
            ModelError: Where inputs or outputs differ.
        """
        ours, theirs = _ends(self._pair.quantized), _ends(compiled)
        if ours != theirs:
            raise ModelError(
                f"the compiled model has inputs and outputs {theirs}, the run's quantized model has {ours}; expected the one "
                "that was compiled from it"
            )
        return compiled

    def write(self, path: Path) -> BundleMade:
        """Writes the archive, and what the folder keeps."""
        counts: dict[str, int] = {}
        draft = self._folder / "boards" / "draft.zip"
        with ArchiveWriter(path) as archive, ArchiveWriter(draft) as kept:
            for name, content in _sources():
                archive.add(name, content)
            for name, content in self._contents.items():
                archive.add(f"models/{name}.tflite", content)
            for which in self.sets:
                counts[which] = self._write_samples(which, archive, kept)
            if self._debug is not None:
                run = run_debug_model(self._debug, self._samples("debug"), self._backend, progress=self._progress)
                run.save(self._folder / "boards" / "host.json")
                kept.add("host.json", (self._folder / "boards" / "host.json").read_bytes())
                (self._folder / "boards" / "host.json").unlink()
            manifest = {
                "name": self.name,
                "tflite_qdebug": tflite_qdebug.__version__,
                "sets": counts,
                "data": {which: dataset.description for which, dataset in self.sets.items()},
                "models": [entry._asdict() for entry in self._entries],
            }
            digest = archive.finish(manifest)
            kept.finish({**manifest, "bundle": digest, "host": self._host})
        shutil.move(draft, self._folder / KEPT.format(digest[:16]))
        names = tuple(entry.name for entry in self._entries)
        return BundleMade(path, digest, path.stat().st_size, names, counts, tuple(self._notes))

    def _write_samples(self, which: str, archive: ArchiveWriter, kept: ArchiveWriter) -> int:
        """Writes samples, and for the set that models are judged on the outputs and labels; returns how many."""
        models = {entry.name: entry for entry in self._entries if entry.samples == which and entry.expected == entry.name}
        if "quantized" in models:
            models[DEFAULT_KERNELS] = models["quantized"]._replace(kernels="auto")
        plain, labels = self._backend._replace(delegates=()), dict[int, Any]()

        def samples() -> Iterator[Any]:
            for sample in track(self._samples(which), f"{which} samples", self.sets[which].length, self._progress):
                labels[sample.index] = sample.label
                archive.add_arrays(f"samples/{which}/{sample.index}.npz", list(sample.inputs))
                yield sample

        def opened() -> dict[str, Interpreter]:
            return {name: plain.open(self._contents[entry.name], entry.kernels) for name, entry in models.items()}

        def outputs(interpreters: dict[str, Interpreter], sample: Any) -> dict[str, list[np.ndarray]]:
            found = {}
            for name, interpreter in interpreters.items():
                if models[name].stateful:
                    interpreter.reset_variables()
                interpreter.invoke(models[name].fed(sample.inputs))
                found[name] = models[name].given(interpreter.read_outputs())
            return found

        def described(interpreters: dict[str, Interpreter]) -> dict[str, str]:
            return {name: interpreter.kernels for name, interpreter in interpreters.items()}

        count = 0
        pool = plain.pool(opened, "computing expected outputs", described, replaceable=False)
        for index, expected in enumerate(map_samples(outputs, pool, samples())):
            count += 1
            for name, arrays in expected.items():
                for writer in (kept,) if name == DEFAULT_KERNELS else (archive, kept):
                    writer.add_arrays(f"expected/{name}/{which}/{index}.npz", arrays)
            if which == self._judged and labels[index] is not None:
                kept.add_arrays(f"labels/{index}.npz", [_label(labels.pop(index))])
        ran = pool.finished[0]
        self._host.update(ran)
        self._entries = [entry._replace(kernels=ran.get(entry.expected, entry.kernels)) for entry in self._entries]
        return count


def _label(value: Any) -> np.ndarray:
    array = np.asarray(value)
    if array.dtype == object:
        raise DatasetError(f"the label {value!r} is no number, text or array; a bundle cannot keep it")
    return array


def _step(model: Model, index: int) -> float | None:
    """Returns real units per quantization step of an output, also of a float one that was dequantized; None without one."""
    tensor = model.main.tensors[index]
    producer = model.main.producers.get(index)
    if tensor.quantization is None and producer is not None and producer.name == "DEQUANTIZE":
        tensor = model.main.tensors[producer.inputs[0]]
    if tensor.quantization is None or tensor.quantization.scale.size != 1:
        return None
    return float(tensor.quantization.scale.reshape(-1)[0])


def _ends(model: Model) -> list[list[tuple[tuple[int, ...], str]]]:
    graph = model.main
    return [
        [(tuple(graph.tensors[index].shape), np.dtype(graph.tensors[index].dtype).name) for index in ends]
        for ends in (graph.inputs, graph.outputs)
    ]


def board_modules(first: Iterable[Path] | None = None) -> list[Path]:
    """Returns the files of the modules that run on a board: the first ones, and all that these import.

    Args:
        first: Files of this package; None: those of the board part.
    """
    found: dict[Path, None] = {}
    waiting = sorted((_PACKAGE / "board").glob("*.py") if first is None else first)
    while waiting:
        path = waiting.pop()
        if path not in found:
            found[path] = None
            waiting += _imported(path)
    return sorted(found)


def _imported(path: Path) -> Iterator[Path]:
    """Yields the files of the package's modules that a file imports."""
    for statement in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if not isinstance(statement, ast.ImportFrom) or not (statement.module or "").startswith("tflite_qdebug"):
            continue
        module = _PACKAGE.joinpath(*str(statement.module).split(".")[1:])
        for name in (module, *(module / alias.name for alias in statement.names)):
            for file in (name.with_name(f"{name.name}.py"), name / "__init__.py"):
                if file.exists() and file.name not in _LEFT_OUT:
                    yield file


def _sources() -> Iterator[tuple[str, bytes]]:
    """Yields the modules of the board part, and the one that the archive begins with."""
    for path in board_modules():
        yield f"tflite_qdebug/{path.relative_to(_PACKAGE).as_posix()}", path.read_bytes()
    yield "__main__.py", (_PACKAGE / "board" / "start.py").read_bytes()


def kept_bundle(folder: str | os.PathLike[str], digest: str) -> Bundle:
    """Returns what a run keeps of a bundle.

    Raises:
        ModelError: Where the run made no such bundle.
    """
    path = Path(folder) / KEPT.format(digest[:16])
    if not path.exists():
        raise ModelError(
            f"the result is of the bundle {digest[:12]}, which was not made from the run in {Path(folder)}; merge it into the "
            "run that the bundle was made from"
        )
    return Bundle(path)
