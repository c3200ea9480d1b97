"""What a sample is, and the checks that it must pass before a model sees it.

The functions here say what is wrong with *one* sample. Which dataset it was, and at which position, is added once, by
:class:`~tflite_qdebug.datasets.opening.Dataset`.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Dict, List, Mapping, Optional, Sequence, Tuple, Union

import numpy as np

from tflite_qdebug.errors import DatasetError, did_you_mean

if TYPE_CHECKING:
    Array = np.ndarray[Any, Any]
# True, False or "auto", as `split_element` takes it.
Labels = Union[bool, str]

LABEL_KEYS = ("labels", "label")


@dataclass(frozen=True)
class InputSpec:
    """One input of a model.

    Attributes:
        name: Tensor name in the model, e.g. ``"serving_default_image:0"``.
        shape: Shape with the batch axis, -1 where dynamic.
        dtypes: The dtypes that are accepted, e.g. ``(float32,)``, or ``(int8, float32)`` where the caller quantizes.
        key: The signature's name for the input, e.g. ``"image"``.
    """

    name: str
    shape: Tuple[int, ...]
    dtypes: Tuple[np.dtype[Any], ...]
    key: Optional[str] = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "shape", tuple(int(size) for size in self.shape))
        object.__setattr__(self, "dtypes", tuple(np.dtype(dtype) for dtype in self.dtypes))

    @property
    def title(self) -> str:
        """The name that a user knows the input by: the signature's, else the tensor's."""
        return self.key or self.name

    def __str__(self) -> str:
        return f"{self.title!r} {self.shape} {_dtype_names(self)}"


@dataclass(frozen=True)
class Sample:
    """One checked sample.

    Attributes:
        index: Position in the dataset, from 0.
        inputs: Arrays in the model's input order; shape and dtype are those of the model.
        label: Whatever the dataset gave as label, or None.
        signature: The signature that the sample is for, or None.
    """

    index: int
    inputs: List[Array]
    label: Any = None
    signature: Optional[str] = None

    @property
    def sha256(self) -> str:
        """Hash of label and inputs, hexadecimal: what tells its content from another's."""
        content = hashlib.sha256(repr(self.label).encode())
        for array in self.inputs:
            content.update(np.ascontiguousarray(array).tobytes())
        return content.hexdigest()


@dataclass(frozen=True)
class Element:
    """What a source read, with its label already set apart; not to be split again."""

    inputs: Any
    label: Any = None


def split_element(element: Any, inputs: Sequence[InputSpec], labels: Labels) -> Tuple[Any, Any, Optional[str]]:
    """Sets label and signature of a sample apart.

    Args:
        element: A sample as the user gave it.
        inputs: The model's inputs; a dict key ``label`` that is an input is no label.
        labels: Whether a tuple is ``(inputs, label)`` (True) or the inputs themselves (False); ``"auto"``: a pair that cannot
            be the inputs is ``(inputs, label)``.

    Returns:
        Inputs (dict, list, tuple or array), label or None, signature or None.
    """
    if isinstance(element, Sample):
        return element.inputs, element.label, element.signature
    label, signature = None, None
    if labels == "auto":
        labels = _is_labelled(element, inputs)
    if isinstance(element, Element):
        element, label, labels = element.inputs, element.label, False
    if labels and isinstance(element, tuple) and element and not isinstance(element[0], str):
        element, label = element[0], _label_of(element[1:])
    if isinstance(element, tuple) and element and isinstance(element[0], str):
        signature = element[0]
        if not 2 <= len(element) <= (3 if labels else 2):
            raise DatasetError(
                f"got a tuple of {len(element)} that starts with the string {signature!r}; expected"
                " (signature, {input: array})"
            )
        element, label = element[1], _label_of(element[2:]) if labels and label is None else label
    if labels and label is None and isinstance(element, Mapping):
        key = label_key(element, inputs)
        if key is not None:
            label = element[key]
            element = {name: value for name, value in element.items() if name != key}
    return element, _plain(label), signature


def _is_labelled(element: Any, inputs: Sequence[InputSpec]) -> bool:
    """True for a dict, and for a pair of which the first holds all inputs."""
    if not isinstance(element, tuple) or not element or isinstance(element[0], str):
        return True
    return len(element) == 2 and (isinstance(element[0], (list, tuple, Mapping)) or len(inputs) == 1)


def label_key(names: Mapping[str, Any], inputs: Sequence[InputSpec]) -> Optional[str]:
    """Returns which of ``names`` holds the labels: ``labels`` or ``label``, unless the model has such an input."""
    taken = set(_known_names(inputs))
    return next((key for key in LABEL_KEYS if key in names and key not in taken), None)


def check_inputs(values: Any, inputs: Sequence[InputSpec], add_batch: bool, labels: Labels = True) -> List[Array]:
    """Checks the inputs of one sample and puts them in the model's order.

    Args:
        values: Dict by key or tensor name, list or tuple in the model's order, or one bare array.
        inputs: The model's inputs.
        add_batch: Whether an array that lacks just a leading batch axis of 1 gets it (else it is an error).
        labels: Whether tuples are read as ``(inputs, label)``; where not, an error mentions that they can be.

    Returns:
        One array per input, with the model's shape and dtype.

    Raises:
        DatasetError: Number of inputs, name, shape, dtype, NaN or infinity; without the dataset's role and the index.
    """
    ordered = _in_order(values, inputs, labels)
    return [_check_array(value, spec, inputs, add_batch) for value, spec in zip(ordered, inputs)]


def _label_of(rest: Tuple[Any, ...]) -> Any:
    """What follows the inputs in a tuple: nothing, one label, or several."""
    if not rest:
        return None
    return rest[0] if len(rest) == 1 else rest


def _plain(value: Any) -> Any:
    """Turns a framework's tensor into numpy; anything else stays as it is."""
    return value.numpy() if callable(getattr(value, "numpy", None)) else value


def _known_names(inputs: Sequence[InputSpec]) -> Dict[str, int]:
    """Position of each input by tensor name and key; a key wins over another input's tensor name."""
    names = {spec.name: position for position, spec in enumerate(inputs)}
    names.update({spec.key: position for position, spec in enumerate(inputs) if spec.key})
    return names


def count_error(count: int, inputs: Sequence[InputSpec]) -> str:
    """Returns the text, worded as TensorFlow's, for a sample with the wrong number of inputs."""
    return f"Number of inputs provided ({count}) does not match number of inputs to the model ({len(inputs)})"


def _in_order(values: Any, inputs: Sequence[InputSpec], labels: Labels) -> List[Any]:
    if isinstance(values, Mapping):
        return _by_name(values, inputs)
    ordered = list(values) if isinstance(values, (list, tuple)) else [values]
    if len(ordered) != len(inputs):
        hint = "; the model takes {}.".format(", ".join(str(spec) for spec in inputs))
        if isinstance(values, tuple) and len(ordered) > len(inputs) and not labels:
            hint += " If the rest of the tuple is a label, pass labels=True, or leave it out of the sample."
        raise DatasetError(count_error(len(ordered), inputs) + hint)
    return ordered


def _by_name(values: Mapping[str, Any], inputs: Sequence[InputSpec]) -> List[Any]:
    names = _known_names(inputs)
    count = "" if len(values) == len(inputs) else count_error(len(values), inputs) + ": "
    titles = [spec.title for spec in inputs]
    ordered: Dict[int, Any] = {}
    for name, value in values.items():
        if name not in names:
            hint = did_you_mean(str(name), names)
            if name in LABEL_KEYS:
                hint += " If it is the label, pass labels=True."
            raise DatasetError(f"{count}the model has no input {name!r}, it takes {titles}.{hint}")
        if names[name] in ordered:
            raise DatasetError(f"{count}the input {inputs[names[name]].title!r} is given twice, by key and tensor name.")
        ordered[names[name]] = value
    missing = [spec.title for position, spec in enumerate(inputs) if position not in ordered]
    if missing:
        raise DatasetError(f"{count}the input {missing[0]!r} is missing, got {[str(name) for name in values]}.")
    return [ordered[position] for position in range(len(inputs))]


def as_array(value: Any) -> Array:
    """Returns ``value`` as an array of the dtype that it has; text, objects and ragged lists are errors.

    Raises:
        DatasetError: There is no array in it.
    """
    value = _plain(value)
    try:
        array = np.asarray(value)
    except (TypeError, ValueError) as error:
        raise DatasetError(f"a {type(value).__name__} cannot be made an array: {error}") from error
    return array


def _check_array(value: Any, spec: InputSpec, inputs: Sequence[InputSpec], add_batch: bool) -> Array:
    try:
        array = as_array(value)
        _check_dtype(array, value, spec)
        array = _check_shape(array, spec, inputs, add_batch)
        check_finite(array)
    except DatasetError as error:
        raise DatasetError(f"input {spec.title!r}: {error}") from error.__cause__
    return array


def _dtype_names(spec: InputSpec) -> str:
    return " or ".join(dtype.name for dtype in spec.dtypes)


def _check_dtype(array: Array, value: Any, spec: InputSpec) -> None:
    if array.dtype in spec.dtypes:
        return
    if array.dtype.kind in "OSU":
        if any(dtype.kind in "OSU" for dtype in spec.dtypes):
            return  # text has a dtype for each length, and as many for each string type: they count as one
        what = "text" if array.dtype.kind in "SU" else "Python objects"
        raise DatasetError(f"got {what} ({type(value).__name__}), expected an array of {_dtype_names(spec)}")
    hint = _cast_hint(array.dtype, spec)
    raise DatasetError(f"got {array.dtype}, expected {_dtype_names(spec)}; {hint}")


def _cast_hint(got: np.dtype[Any], spec: InputSpec) -> str:
    """How to get to the right dtype; a float is never told to be truncated to an integer."""
    floats = [dtype for dtype in spec.dtypes if dtype.kind == "f"]
    if floats:
        return f"use array.astype(np.{floats[0].name})"
    if got.kind == "f":
        return "quantize it first: clip(round(array / scale) + zero_point), with the input's scale and zero point"
    return f"use array.astype(np.{spec.dtypes[0].name}) if its values fit"


def _fits(shape: Tuple[int, ...], expected: Tuple[int, ...]) -> bool:
    return len(shape) == len(expected) and all(want in (-1, got) for got, want in zip(shape, expected))


def _check_shape(array: Array, spec: InputSpec, inputs: Sequence[InputSpec], add_batch: bool) -> Array:
    if _fits(array.shape, spec.shape):
        return array
    if add_batch and _lacks_batch(array.shape, spec.shape):
        return array[np.newaxis]
    hint = _shape_hint(array.shape, spec, inputs)
    raise DatasetError(f"got shape {array.shape}, expected {spec.shape}" + (f"; {hint}" if hint else ""))


def _lacks_batch(shape: Tuple[int, ...], expected: Tuple[int, ...]) -> bool:
    return bool(expected) and expected[0] in (1, -1) and _fits(shape, expected[1:])


def _shape_hint(shape: Tuple[int, ...], spec: InputSpec, inputs: Sequence[InputSpec]) -> str:
    expected = spec.shape
    if _lacks_batch(shape, expected):
        return "the leading batch axis seems to be missing, use array[np.newaxis]"
    for other in inputs:
        if other is not spec and _fits(shape, other.shape):
            order = [known.title for known in inputs]
            return f"it would fit the input {other.title!r}: are the inputs in the model's order, {order}?"
    if len(shape) == 4 and _fits((shape[0], shape[2], shape[3], shape[1]), expected):
        return "the axes seem to be swapped (channels first), use np.transpose(array, (0, 2, 3, 1))"
    if len(shape) == 3 and _lacks_batch((shape[1], shape[2], shape[0]), expected):
        return "the axes seem to be swapped (channels first), use np.transpose(array, (1, 2, 0))"
    if len(shape) == len(expected) and -1 not in expected and sorted(shape) == sorted(expected):
        return "the axes seem to be swapped, use np.transpose"
    if len(shape) == len(expected) and shape and _fits(shape[1:], expected[1:]):
        return f"it seems to be a batch of {shape[0]}: give one sample at a time, or a single array of all samples"
    if len(shape) == len(expected) + 1 and _fits(shape[1:], expected):
        return f"there is an axis of {shape[0]} in front: give one sample at a time"
    return ""


def check_finite(array: Array) -> None:
    """Raises if there is a NaN or an infinity in ``array``.

    Raises:
        DatasetError: How many values there are, and where the first is.
    """
    if array.dtype.kind not in "fc":
        return
    finite = np.isfinite(array)
    if finite.all():
        return
    count = int(array.size - np.count_nonzero(finite))
    first = tuple(int(position) for position in np.argwhere(~finite)[0])
    values = "value is" if count == 1 else "values are"
    raise DatasetError(f"{count} of {array.size} {values} NaN or infinite, the first is {array[first]} at {first}")
