"""What a run was made of, kept beside it, so that its analyses can go on."""

from __future__ import annotations

import dataclasses
import json
import os
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from tflite_qdebug import example
from tflite_qdebug.collect import Backend
from tflite_qdebug.delegates import Delegate
from tflite_qdebug.errors import ModelError
from tflite_qdebug.files import write_atomically

__all__ = ["SETUP", "Setup", "lasting", "lasting_delegates", "named_data", "with_defaults"]

#: The file that tells what a run was made of.
SETUP = "study.json"
_FORMAT = "tflite_qdebug study"
_EXAMPLE = {
    "representative": example.representative_dataset,
    "debug": example.debug_dataset,
    "evaluation": example.evaluation_dataset,
}


@dataclasses.dataclass(frozen=True)
class Setup:
    """What a run was made of, kept beside it.

    Attributes:
        float_model: File of the float model, from the folder; None where there is none.
        quantized_model: File of the quantized model, from the folder.
        debug_data: As the command line takes it; None where it was given as an object.
        evaluation_data: The same.
        metrics: Task metrics by name, the main one first.
        label_offset: Added to each label.
        limit: Take the first so many samples.
        signature: The signature that was measured; None: the main subgraph.
        runtime: The package that ran the models, as it was asked for.
        kernels: The kernels, as they were asked for.
        inside: The loop, branch or composite that the run is of, where the model itself is float throughout.
        representative_data: What calibrated the quantized model, as the command line takes it; None where that was not said.
        delegates: ``(library, options)`` of each delegate that ran the quantized model.
    """

    float_model: str | None
    quantized_model: str
    debug_data: str | None = None
    evaluation_data: str | None = None
    metrics: tuple[str, ...] = ()
    label_offset: int = 0
    limit: int | None = None
    signature: str | None = None
    runtime: str = "auto"
    kernels: str = "auto"
    inside: str | None = None
    representative_data: str | None = None
    delegates: tuple[tuple[str, Mapping[str, str]], ...] = ()

    def save(self, folder: str | os.PathLike[str]) -> None:
        """Writes it into the folder of a run.

        Raises:
            OutputError: Where it cannot be written.
        """
        content = {"format": _FORMAT, "format_version": 1, **dataclasses.asdict(self)}
        write_atomically(Path(folder) / SETUP, json.dumps(content, indent=1).encode())

    @classmethod
    def load(cls, folder: str | os.PathLike[str]) -> Setup:
        """Reads it.

        Raises:
            ModelError: Where there is none, or it is broken.
        """
        path = Path(folder) / SETUP
        try:
            fields = json.loads(path.read_bytes())
            if not isinstance(fields, dict):
                raise ModelError(f"{path} is broken: it holds a {type(fields).__name__}, expected an object")
            if fields.pop("format") != _FORMAT or fields.pop("format_version") != 1:
                raise ModelError(f"{path} is of another format, expected {_FORMAT!r} version 1")
            delegates = tuple((library, dict(options)) for library, options in fields.get("delegates", ()))
            return cls(**{**fields, "metrics": tuple(fields["metrics"]), "delegates": delegates})
        except OSError as error:
            raise ModelError(
                f"cannot read {path}: {error.strerror}; expected the folder of a run of this version, with its models. Make it "
                "anew with 'tflite-qdebug run ... --output DIR'"
            ) from error
        except (ValueError, KeyError, TypeError) as error:
            if isinstance(error, ModelError):
                raise
            raise ModelError(f"{path} is broken: {error}") from error


def with_defaults(backend: Backend, setup: Setup) -> Backend:
    """Returns the backend, with the run's own runtime where none was asked for; kernels and delegates likewise, together."""
    runtime = setup.runtime if backend.runtime == "auto" else backend.runtime
    if backend.kernels != "auto" or backend.delegates:
        return backend._replace(runtime=runtime)
    delegates = tuple(Delegate(library, options) for library, options in setup.delegates)
    return backend._replace(runtime=runtime, kernels=setup.kernels, delegates=delegates)


def lasting_delegates(delegates: Iterable[Delegate]) -> tuple[tuple[str, Mapping[str, str]], ...]:
    """Returns what a setup keeps of delegates: libraries that are files by a path that holds in any folder."""
    return tuple((lasting(one.library) or one.library, dict(one.options)) for one in delegates)


def lasting(source: Any) -> str | None:
    """Returns data as the command line takes it, with paths that hold in any folder; None for an object."""
    if not isinstance(source, (str, os.PathLike)):
        return None
    text = os.fspath(source)
    if text.startswith("tfds:"):
        return re.sub(r"(?<=[?&]data_dir=)[^&]+", lambda found: str(Path(found[0]).expanduser().absolute()), text)
    prefix, path, rest = ("images:", *text[7:].partition("?")[::2]) if text.startswith("images:") else ("", text, "")
    if text == "example" or not path or not Path(path).exists():
        return text
    return prefix + str(Path(path).absolute()) + ("?" + rest if rest else "")


def named_data(text: str | None, which: str) -> Any:
    """Returns data that the command line names; ``example`` is the built-in one."""
    return _EXAMPLE[which] if text == "example" else text
