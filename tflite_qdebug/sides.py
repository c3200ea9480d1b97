"""Two kernels to be held against each other: what they are called, and how a model runs on each."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from tflite_qdebug import tf_private
from tflite_qdebug.collect import Backend
from tflite_qdebug.edit.flatbuffer import model_of_nothing
from tflite_qdebug.errors import InterpreterError, OptionError
from tflite_qdebug.interpreter import Interpreter

__all__ = ["Player", "Side", "sides_of"]


class Side(NamedTuple):
    """One of the two kernels, and what it is called."""

    backend: Backend
    label: str

    def open(self, content: bytes, what: str) -> Interpreter:
        """Opens an interpreter with the kernels that were asked for, and no others."""
        hint = "choose two kernels that run this model"
        try:
            interpreter = self.backend.open(content)
        except InterpreterError as error:
            raise InterpreterError(f"{self.label}, {what}: {error}; {hint}") from error
        if interpreter.kernels != ("xnnpack" if self.backend.kernels == "auto" else self.backend.kernels):
            reason = "; ".join(interpreter.notes)
            raise InterpreterError(
                f"{self.label}, {what}: {reason}. That would compare other kernels than those asked for; {hint}"
            )
        return interpreter

    def check(self) -> None:
        """Tries whether its runtime, kernels and delegates can be had at all.

        Raises:
            InterpreterError: Where they cannot, or end the process in which it is tried.
        """
        content = model_of_nothing()
        self.backend.apart(lambda: self.backend.open(content) and None, what=f"opening {self.label}, with nothing to run,")


def sides_of(first: Backend, second: Backend) -> tuple[Side, Side]:
    """Returns both kernels with labels that tell them apart.

    Raises:
        OptionError: Where nothing does.
    """
    backends = first._replace(strict=False), second._replace(strict=False)  # what is wrong here is to be found
    runtimes = [tf_private.open_runtime(backend.runtime) for backend in backends]
    labels = [_label(backend) for backend in backends]
    what = [(runtime.name, b.kernels, tuple(b.delegates), b.threads) for runtime, b in zip(runtimes, backends, strict=True)]
    if what[0] == what[1]:
        raise OptionError(
            f"got {labels[0]} of {runtimes[0].name} twice, expected two kernels, runtimes or delegates that differ"
        )
    if runtimes[0].name != runtimes[1].name:
        labels = [f"{runtime.name} {name}" for runtime, name in zip(runtimes, labels, strict=True)]
    elif labels[0] == labels[1]:  # threads or a delegate's options differ
        labels = [f"{name} ({order})" for name, order in zip(labels, ("first", "second"), strict=True)]
    return Side(backends[0], labels[0]), Side(backends[1], labels[1])


def _label(backend: Backend) -> str:
    names = [Path(delegate.library).name for delegate in backend.delegates]
    if backend.kernels != "auto" or not names:
        names.append("xnnpack" if backend.kernels == "auto" else backend.kernels)
    return " + ".join(names)


class Player:
    """Runs one model on one side, from the same state each time."""

    def __init__(self, open_: Callable[[], Interpreter], outputs: Sequence[int], reopens: bool) -> None:
        self._open, self._outputs, self._reopens = open_, tuple(outputs), reopens
        self.interpreter = open_()
        self._used = False

    def _reset(self) -> None:
        if self._used and self._reopens:  # nothing else sets resources back
            self.interpreter = self._open()
        elif self._used:
            self.interpreter.reset_variables()
        self._used = True

    def run(self, inputs: Sequence[np.ndarray], inputs_too: bool = False) -> dict[int, np.ndarray]:
        """Returns the outputs, and with ``inputs_too`` what the inputs became in the model's types, by tensor index."""
        self._reset()
        values: dict[int, np.ndarray] = {}
        if inputs_too:
            self.interpreter.feed(inputs)
            values = {info.index: self.interpreter.read(info.index) for info in self.interpreter.inputs}
        self.interpreter.invoke(inputs)
        values.update((index, self.interpreter.read(index)) for index in self._outputs)
        return values
