"""Where samples come from, when it is an object in memory: function, iterator, list, array, dict, ``tf.data``."""

from __future__ import annotations

import types
from abc import ABC, abstractmethod
from typing import TYPE_CHECKING, Any, Callable, Iterable, Iterator, Mapping, Optional, Sequence, Sized

import numpy as np

from tflite_qdebug.datasets.samples import Element, InputSpec, as_array, label_key
from tflite_qdebug.errors import DatasetError

if TYPE_CHECKING:
    from tflite_qdebug.datasets.samples import Array


class Source(ABC):
    """Something that can be read for samples, once per pass.

    Attributes:
        description: Short text that tells the source from others, without the number of samples.
        length: Number of samples, or None if only reading tells.
        add_batch: Whether its arrays get a leading batch axis where just that is missing. True for what is stored
            sample by sample (arrays, files, ``tf.data``); False for what a user wrote for a model, which must fit.
    """

    description: str = "samples"
    length: Optional[int] = None
    add_batch: bool = False

    def start(self) -> Source:
        """Returns what to read in the pass that begins: the source itself, unless a call has to make it."""
        return self

    @abstractmethod
    def read(self, inputs: Sequence[InputSpec]) -> Iterator[Any]:
        """Yields samples as they are, one at a time; ``inputs`` tell what the model wants."""


class IterableSource(Source):
    """A list, a tuple or any other object that can be iterated again and again."""

    def __init__(self, samples: Iterable[Any]) -> None:
        self.description = type(samples).__name__
        self.length = len(samples) if isinstance(samples, Sized) else None
        self._samples = samples

    def read(self, inputs: Sequence[InputSpec]) -> Iterator[Any]:
        """Yields the samples, see :meth:`Source.read`."""
        return iter(self._samples)


class IteratorSource(Source):
    """A generator object or another iterator: good for one pass."""

    def __init__(self, iterator: Iterator[Any], description: Optional[str] = None) -> None:
        self.description = description or str(getattr(iterator, "__qualname__", type(iterator).__name__))
        self.iterator = iterator
        self._started = False
        self._count = 0

    def consumed(self) -> DatasetError:
        """Returns the error for a second pass."""
        return DatasetError(
            f"the iterator of {self.description} was already consumed after {self._count} samples;"
            " pass a function that returns a new generator each time it is called"
        )

    def read(self, inputs: Sequence[InputSpec]) -> Iterator[Any]:
        """Yields the samples, see :meth:`Source.read`."""
        if self._started:
            raise self.consumed()
        self._started = True
        for element in self.iterator:
            self._count += 1
            yield element


class _CalledSource(IteratorSource):
    """An iterator that was made for us: a generator is closed as soon as the pass ends, early or not."""

    def read(self, inputs: Sequence[InputSpec]) -> Iterator[Any]:
        """Yields the samples, see :meth:`Source.read`."""
        try:
            yield from super().read(inputs)
        finally:
            if isinstance(self.iterator, types.GeneratorType):
                self.iterator.close()


class FunctionSource(Source):
    """A function without arguments that returns an iterator, or anything else that samples can be read from.

    It is called when a pass begins, not before, as calibration and measuring may be hours apart.
    """

    def __init__(self, function: Callable[[], Any], resolve: Callable[[Any], Source]) -> None:
        name = getattr(function, "__qualname__", type(function).__qualname__)
        module = getattr(function, "__module__", None)
        self.description = f"function {module}.{name}" if module else f"function {name}"
        self._function = function
        self._resolve = resolve
        self._last: Optional[IteratorSource] = None

    def start(self) -> Source:
        """Calls the function and returns what it gave, as a source."""
        made = self._function()
        if not isinstance(made, Iterator):
            return self._resolve(made).start()
        if self._last is not None and self._last.iterator is made:
            raise self._last.consumed()
        self._last = _CalledSource(made, self.description)
        return self._last

    def read(self, inputs: Sequence[InputSpec]) -> Iterator[Any]:
        """Yields the samples, see :meth:`Source.read`."""
        return self.start().read(inputs)


class ArraySource(Source):
    """One array of shape (samples, ...), for a model with one input."""

    add_batch = True

    def __init__(self, array: Array, description: str = "array") -> None:
        if array.ndim == 0:
            raise DatasetError("got an array without axes, expected shape (samples, ...)")
        self.description = description
        self.length = len(array)
        self._array = array

    def read(self, inputs: Sequence[InputSpec]) -> Iterator[Any]:
        """Yields the samples, see :meth:`Source.read`."""
        for index in range(len(self._array)):
            yield Element([np.asarray(self._array[index])])


class TableSource(Source):
    """Arrays of shape (samples, ...) by input, and ``labels`` or ``label`` if wanted."""

    add_batch = True

    def __init__(self, columns: Mapping[str, Any], description: str = "dict of arrays") -> None:
        self.description = description
        self._columns = {name: as_array(column) for name, column in columns.items()}
        lengths = {name: len(column) if column.ndim else 0 for name, column in self._columns.items()}
        if len(set(lengths.values())) > 1:
            raise DatasetError(f"{description}: the arrays differ in their number of samples: {lengths}")
        self.length = max(lengths.values(), default=0)

    def read(self, inputs: Sequence[InputSpec]) -> Iterator[Any]:
        """Yields the samples, see :meth:`Source.read`."""
        key = label_key(self._columns, inputs)
        for index in range(self.length or 0):
            row = {name: column[index] for name, column in self._columns.items()}
            label = None if key is None else row.pop(key)
            yield Element(row, label)


class TfDataSource(Source):
    """A ``tf.data.Dataset``, recognized by its methods: whoever hands us one has imported TensorFlow already."""

    add_batch = True

    def __init__(self, dataset: Any, description: str = "tf.data") -> None:
        self.description = description
        self._dataset = dataset
        count = int(dataset.cardinality()) if hasattr(dataset, "cardinality") else -2
        self.infinite = count == -1
        self.length = count if count >= 0 else None

    @staticmethod
    def recognizes(candidate: Any) -> bool:
        """Tells whether ``candidate`` is a ``tf.data.Dataset``."""
        return hasattr(candidate, "as_numpy_iterator") and hasattr(candidate, "element_spec")

    def read(self, inputs: Sequence[InputSpec]) -> Iterator[Any]:
        """Yields the samples, see :meth:`Source.read`."""
        return iter(self._dataset.as_numpy_iterator())
