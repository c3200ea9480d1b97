"""Where samples come from, when it is an object in memory: function, iterator, list, array, dict, ``tf.data``."""

from __future__ import annotations

import types
from abc import ABC, abstractmethod
from typing import TYPE_CHECKING, Any, Callable, Iterable, Iterator, List, Mapping, Optional, Sequence, Sized

import numpy as np

from tflite_qdebug.datasets.samples import Element, InputSpec, Labels, as_array, label_key
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
        labels: How a tuple is read where nobody said it, as `split_element` takes it.
    """

    description: str = "samples"
    length: Optional[int] = None
    add_batch: bool = False
    labels: Labels = False

    def start(self) -> Source:
        """Returns what to read in the pass that begins: the source itself, unless a call has to make it."""
        return self

    def fitted(self, inputs: Sequence[InputSpec]) -> Source:
        """Returns the source as it is read for a model with these inputs: itself, unless it holds batches."""
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


_UNNAMED = "arr_0"


class TableSource(Source):
    """Arrays of shape (samples, ...) by input, and ``labels`` or ``label`` if wanted.

    An array that nobody named, which numpy calls ``arr_0`` in a file, is the input of a model that has one.
    """

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
        columns = {name: column for name, column in self._columns.items() if name != key}
        if list(columns) == [_UNNAMED] and len(inputs) == 1 and _UNNAMED not in (inputs[0].name, inputs[0].title):
            columns = {inputs[0].name: columns[_UNNAMED]}
        for index in range(self.length or 0):
            label = None if key is None else self._columns[key][index]
            yield Element({name: column[index] for name, column in columns.items()}, label)


class TfDataSource(Source):
    """A ``tf.data.Dataset``, recognized by its methods: whoever hands us one has imported TensorFlow already.

    Its pairs are ``(inputs, label)``, as Keras has them, where they cannot be the inputs; its batches are taken apart for a
    model that takes one sample at a time.
    """

    add_batch = True
    labels = "auto"

    def __init__(self, dataset: Any, description: str = "tf.data") -> None:
        self.description = description
        self._dataset = dataset
        count = int(dataset.cardinality()) if hasattr(dataset, "cardinality") else -2
        self.infinite = count == -1
        self.length = count if count >= 0 else None

    def fitted(self, inputs: Sequence[InputSpec]) -> Source:
        """Returns the samples one by one, see :meth:`Source.fitted`."""
        if not _in_batches(self._dataset.element_spec, inputs):
            return self
        return TfDataSource(self._dataset.unbatch(), self.description)

    @staticmethod
    def recognizes(candidate: Any) -> bool:
        """Tells whether ``candidate`` is a ``tf.data.Dataset``."""
        return hasattr(candidate, "as_numpy_iterator") and hasattr(candidate, "element_spec")

    def read(self, inputs: Sequence[InputSpec]) -> Iterator[Any]:
        """Yields the samples, see :meth:`Source.read`."""
        return iter(self._dataset.as_numpy_iterator())


def _in_batches(element: Any, inputs: Sequence[InputSpec]) -> bool:
    """Tells whether elements are batches of what the model takes one by one: all have one axis more than a sample."""
    shapes: List[Any] = [getattr(leaf, "shape", None) for leaf in _leaves(element)]
    if not inputs or not shapes or any(shape is None or not shape.rank for shape in shapes):
        return False
    if any(not spec.shape or spec.shape[0] not in (1, -1) for spec in inputs):
        return False  # a model for batches of a size of its own, or without any
    most = max(len(spec.shape) for spec in inputs)
    return max(len(shape) for shape in shapes) == most and any(shape[0] != 1 for shape in shapes)


def _leaves(element: Any) -> Iterator[Any]:
    if isinstance(element, Mapping):
        element = tuple(element.values())
    if not isinstance(element, (list, tuple)):
        yield element
        return
    for part in element:
        yield from _leaves(part)
