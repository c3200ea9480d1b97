"""Datasets: every kind of source gives the same samples, and every check says what is wrong and where."""

from __future__ import annotations

import csv
import importlib.util
import os
import subprocess
import sys
import textwrap
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tflite_qdebug.datasets import Dataset, InputSpec, Sample, from_images, from_tfds, open_dataset, save_folder
from tflite_qdebug.errors import DatasetError, MissingPackageError, OptionError, OutputError

ROOT = Path(__file__).resolve().parents[1]
COUNT = 5
FLOAT = np.dtype(np.float32)
INT8 = np.dtype(np.int8)
IMAGE = InputSpec("serving_default_image:0", (1, 8, 6, 3), (FLOAT,), key="image")
SCALE = 0.25
OFFSET = -1.0
LABELS = [3, 1, 4, 1, 5]
ROLE = "debug dataset"


def spec(shape: tuple[int, ...], *dtypes: Any, name: str = "x:0", key: str | None = "x") -> InputSpec:
    return InputSpec(name, shape, dtypes or (FLOAT,), key)


def pixels() -> np.ndarray:
    """Five 8-bit images, (5, 8, 6, 3); small multiples so that float32 arithmetic on them is exact."""
    return np.random.default_rng(7).integers(0, 256, (COUNT, 8, 6, 3), dtype=np.uint8)


def values() -> np.ndarray:
    """The images as the model's input, (5, 8, 6, 3) float32."""
    return pixels().astype(np.float32) * np.float32(SCALE) + np.float32(OFFSET)


def rows() -> Iterator[list[np.ndarray]]:
    for image in values():
        yield [image[np.newaxis]]


def opened(source: Any, inputs: list[InputSpec] | None = None, **options: Any) -> Dataset:
    return open_dataset(source, inputs or [IMAGE], **options)


def error_of(source: Any, inputs: list[InputSpec] | None = None, **options: Any) -> str:
    """The message that reading ``source`` to its end raises."""
    with pytest.raises(DatasetError) as caught:
        list(opened(source, inputs, **options))
    return str(caught.value)


def check_same_samples(dataset: Dataset, labels: list[Any] | None) -> None:
    """The contract of every source: the five samples in order, twice, with labels, length and limits."""
    for _ in range(2):
        samples = list(dataset)
        assert [sample.index for sample in samples] == list(range(COUNT))
        assert all(len(sample.inputs) == 1 for sample in samples)
        for sample, image in zip(samples, values(), strict=True):
            assert type(sample.inputs[0]) is np.ndarray
            assert sample.inputs[0].dtype == np.float32
            assert sample.inputs[0].shape == (1, 8, 6, 3)
            np.testing.assert_array_equal(sample.inputs[0][0], image)
        found = [sample.label for sample in samples]
        assert found == (labels if labels is not None else [None] * COUNT)
        assert dataset.length == COUNT
    assert f"({COUNT} samples)" in dataset.description
    first_two = open_dataset(dataset, dataset.inputs, role="representative dataset", limit=2)
    assert [sample.index for sample in first_two] == [0, 1]
    assert first_two.length == 2
    many = open_dataset(dataset, dataset.inputs, limit=1000)
    assert len(list(many)) == COUNT
    assert many.length == COUNT
    with pytest.raises(DatasetError, match=r"expected .*7"):
        list(open_dataset(dataset, [InputSpec(IMAGE.name, (1, 8, 7, 3), (FLOAT,), IMAGE.key)]))


# ----------------------------------------------------------------------------------------------------------------------
# Sources: each builder writes the five samples in its own form.


def make_npz(folder: Path) -> str:
    np.savez(folder / "five.npz", image=values(), labels=LABELS)
    return str(folder / "five.npz")


def make_npz_by_tensor_name(folder: Path) -> str:
    arrays: dict[str, Any] = {IMAGE.name: values()[:, np.newaxis], "label": LABELS}
    np.savez_compressed(folder / "five.npz", **arrays)
    return str(folder / "five.npz")


def make_npy(folder: Path) -> Path:
    np.save(folder / "five.npy", values())
    return folder / "five.npy"


def make_folder(folder: Path) -> Path:
    """Numbers 8 to 12: the order of the texts is not the order of the numbers."""
    (folder / "image").mkdir()
    for number, image in enumerate(values(), start=8):
        np.save(folder / "image" / f"{number}.npy", image[np.newaxis])
    (folder / "labels.txt").write_text("".join(f"{label}\n" for label in LABELS))
    return folder


def make_folder_by_tensor_name(folder: Path) -> str:
    (folder / "serving_default_image%3A0").mkdir()
    for number, image in enumerate(values()):
        np.save(folder / "serving_default_image%3A0" / f"{number}.npy", image)
    (folder / "labels.csv").write_text(
        "file,label\n" + "".join(f"{number}.npy,{label}\n" for number, label in reversed(list(enumerate(LABELS))))
    )
    return str(folder)


MODULE = """
import numpy as np

def rows():
    with np.load({path!r}) as archive:
        for image, label in zip(archive["image"], archive["labels"]):
            yield ([image[None]], int(label))

def path():
    return {path!r}

class Nested:
    @staticmethod
    def rows():
        return rows()

constant = 3
"""


def make_module(folder: Path, name: str) -> None:
    (folder / f"{name}.py").write_text(MODULE.format(path=make_npz(folder)))


def make_function_string(folder: Path) -> str:
    make_module(folder, "five_as_function")
    return "five_as_function:rows"


def make_function_string_of_path(folder: Path) -> str:
    make_module(folder, "five_as_path")
    return "five_as_path:path"


def make_nested_function_string(folder: Path) -> str:
    make_module(folder, "five_nested")
    return "five_nested:Nested.rows"


class Iterable:
    """Neither list nor iterator: iterated again and again, without a length."""

    def __iter__(self) -> Iterator[list[np.ndarray]]:
        return rows()


class RepresentativeDataset:
    """Built like ``tf.lite.RepresentativeDataset``."""

    def __init__(self, input_gen: Callable[[], Any]) -> None:
        self.input_gen = input_gen


def labelled(inputs: Callable[[np.ndarray], Any]) -> list[Any]:
    return [(inputs(image[np.newaxis]), label) for image, label in zip(values(), LABELS, strict=True)]


UNLABELLED_SOURCES: dict[str, Callable[[Path], Any]] = {
    "function": lambda _: rows,
    "function of bare arrays": lambda _: lambda: (row[0] for row in rows()),
    "function of tuples": lambda _: lambda: (tuple(row) for row in rows()),
    "function of dicts by key": lambda _: lambda: ({"image": row[0]} for row in rows()),
    "function of dicts by tensor name": lambda _: lambda: ({IMAGE.name: row[0]} for row in rows()),
    "function returning a list": lambda _: lambda: list(rows()),
    "function returning an array": lambda _: values,
    "function returning a dataset": lambda _: lambda: opened(rows, role="representative dataset"),
    "RepresentativeDataset": lambda _: RepresentativeDataset(rows),
    "list": lambda _: list(rows()),
    "tuple": lambda _: tuple(rows()),
    "list of samples": lambda _: list(opened(rows)),
    "iterable": lambda _: Iterable(),
    "array": lambda _: values(),
    "array with batch axis": lambda _: values()[:, np.newaxis],
    "dict": lambda _: {"image": values()},
    "dict by tensor name": lambda _: {IMAGE.name: values()[:, np.newaxis]},
    "npy": make_npy,
    "opened": lambda _: opened(rows, role="representative dataset"),
}
LABELLED_SOURCES: dict[str, Callable[[Path], Any]] = {
    "tuples of list and label": lambda _: labelled(lambda image: [image]),
    "tuples of array and label": lambda _: labelled(lambda image: image),
    "tuples of dict and label": lambda _: labelled(lambda image: {"image": image}),
    "tuples of tuple and label": lambda _: labelled(lambda image: (image,)),
    "dicts with label": lambda _: [{"image": row[0], "label": label} for row, label in labelled(lambda image: [image])],
    "dict of arrays": lambda _: {"image": values(), "labels": LABELS},
    "npz": make_npz,
    "npz by tensor name": make_npz_by_tensor_name,
    "folder": make_folder,
    "folder by tensor name": make_folder_by_tensor_name,
    "module:function": make_function_string,
    "module:function of a path": make_function_string_of_path,
    "module:Class.function": make_nested_function_string,
}


@pytest.mark.parametrize("kind", UNLABELLED_SOURCES)
def test_contract(kind: str, tmp_path: Path) -> None:
    check_same_samples(opened(UNLABELLED_SOURCES[kind](tmp_path)), labels=None)


@pytest.mark.parametrize("kind", LABELLED_SOURCES)
def test_contract_with_labels(kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    check_same_samples(opened(LABELLED_SOURCES[kind](tmp_path), labels=True), labels=LABELS)


def test_every_kind_of_source_is_tried() -> None:
    assert len(UNLABELLED_SOURCES) + len(LABELLED_SOURCES) == 32


# ----------------------------------------------------------------------------------------------------------------------
# Labels and signatures


def test_labels_are_read_by_default_for_the_evaluation_dataset_only() -> None:
    source = labelled(lambda image: [image])
    evaluation = opened(source, role="evaluation dataset")
    assert [sample.label for sample in evaluation] == LABELS
    assert "pass labels=True" in error_of([(values()[:1], 3)])
    assert error_of(source, role="evaluation dataset", labels=False)


def test_a_pair_is_two_inputs_without_labels_and_input_and_label_with_them() -> None:
    one, two = np.zeros((1, 2), np.float32), np.ones((1, 2), np.float32)
    inputs = [spec((1, 2)), spec((1, 2), name="y:0", key="y")]
    (sample,) = opened([(one, two)], inputs)
    assert sample.label is None
    np.testing.assert_array_equal(sample.inputs, [one, two])
    (sample,) = opened([(one, two)], inputs[:1], labels=True)
    np.testing.assert_array_equal(sample.inputs, [one])
    np.testing.assert_array_equal(sample.label, two)
    (sample,) = opened([[one, two]], inputs, labels=True)  # a list is never split
    assert sample.label is None
    (sample,) = opened([((one, two), 7)], inputs, labels=True)
    assert sample.label == 7
    (sample,) = opened([((one, two), 7, "weight")], inputs, labels=True)
    assert sample.label == (7, "weight")


def test_an_input_called_label_is_no_label() -> None:
    inputs = [spec((1, 2), key="label")]
    (sample,) = opened([{"label": np.zeros((1, 2), np.float32)}], inputs, labels=True)
    assert sample.label is None
    (sample,) = opened({"label": np.zeros((1, 2), np.float32), "labels": [4]}, inputs)
    assert sample.label == 4


@pytest.mark.parametrize(
    ("element", "labels", "label"),
    [
        (("serve", {"image": values()[:1]}), False, None),
        (("serve", {"image": values()[:1]}), True, None),
        (("serve", {"image": values()[:1]}, 9), True, 9),
        ((("serve", {"image": values()[:1]}), 9), True, 9),
    ],
)
def test_signature_is_kept(element: Any, labels: bool, label: Any) -> None:
    (sample,) = opened([element], labels=labels)
    assert (sample.signature, sample.label) == ("serve", label)
    (sample,) = opened([element], labels=labels, signature="serve")
    assert sample.signature == "serve"


def test_other_signatures_are_an_error_that_lists_them() -> None:
    sample = {"image": values()[:1]}
    message = error_of([("serve", sample), ("train", sample)], signature="serve")
    assert message == "debug dataset, sample 1: got the signature 'train', expected 'serve'"
    assert [item.signature for item in opened([sample], signature="serve")] == ["serve"]


def test_a_signature_pair_of_wrong_length() -> None:
    assert "got a tuple of 3 that starts with the string 'serve'" in error_of([("serve", {}, 3)])


# ----------------------------------------------------------------------------------------------------------------------
# Checks: each with its message, on the sample at index 1

GOOD = np.zeros((1, 2), np.float32)
TWO = [spec((1, 2)), spec((1, 3), INT8, name="mask:0", key="mask")]
MASK = np.zeros((1, 3), np.int8)


def check_message(bad: Any, inputs: list[InputSpec], expected: str, good: Any = None) -> None:
    good = [GOOD, MASK][: len(inputs)] if good is None else good
    message = error_of(lambda: iter([good, bad]), inputs, role="representative dataset")
    assert message.startswith("representative dataset, sample 1: ")
    assert expected in message


@pytest.mark.parametrize(
    ("bad", "inputs", "expected"),
    [
        ([GOOD, GOOD], TWO[:1], "Number of inputs provided (2) does not match number of inputs to the model (1)"),
        ([GOOD], TWO, "Number of inputs provided (1) does not match number of inputs to the model (2)"),
        ([], TWO, "Number of inputs provided (0) does not match number of inputs to the model (2)"),
        (
            GOOD,
            TWO,
            "Number of inputs provided (1) does not match number of inputs to the model (2); the model takes 'x'",
        ),
        (
            {"x": GOOD},
            TWO,
            "Number of inputs provided (1) does not match number of inputs to the model (2): the input 'mask'",
        ),
        ({"x": GOOD, "masc": MASK}, TWO, "the model has no input 'masc', it takes ['x', 'mask']. Did you mean 'mask'"),
        ({"x": GOOD, "x:0": GOOD}, TWO, "the input 'x' is given twice"),
        ({"x": GOOD, "label": 1}, TWO[:1], "If it is the label, pass labels=True"),
    ],
)
def test_inputs_by_count_and_name(bad: Any, inputs: list[InputSpec], expected: str) -> None:
    check_message(bad, inputs, expected)


@pytest.mark.parametrize(
    ("shape", "expected", "message"),
    [
        (
            (8, 6, 3),
            (1, 8, 6, 3),
            "got shape (8, 6, 3), expected (1, 8, 6, 3); the leading batch axis seems to be missing",
        ),
        (
            (1, 3, 8, 6),
            (1, 8, 6, 3),
            "the axes seem to be swapped (channels first), use np.transpose(array, (0, 2, 3, 1))",
        ),
        ((3, 8, 6), (1, 8, 6, 3), "(channels first), use np.transpose(array, (1, 2, 0))"),
        ((1, 6, 8, 3), (1, 8, 6, 3), "the axes seem to be swapped, use np.transpose"),
        ((32, 8, 6, 3), (1, 8, 6, 3), "it seems to be a batch of 32"),
        ((32, 1, 8, 6, 3), (1, 8, 6, 3), "there is an axis of 32 in front"),
        ((1, 9, 6, 3), (1, 8, 6, 3), "got shape (1, 9, 6, 3), expected (1, 8, 6, 3)"),
        ((1, 8, 6, 1), (1, -1, -1, 3), "got shape (1, 8, 6, 1), expected (1, -1, -1, 3)"),
        ((), (1,), "got shape (), expected (1,); the leading batch axis seems to be missing"),
    ],
)
def test_shape(shape: tuple[int, ...], expected: tuple[int, ...], message: str) -> None:
    sizes = tuple(1 if size == -1 else size for size in expected)
    check_message([np.zeros(shape, np.float32)], [spec(expected)], "input 'x': got shape", [np.zeros(sizes, np.float32)])
    check_message([np.zeros(shape, np.float32)], [spec(expected)], message, [np.zeros(sizes, np.float32)])


@pytest.mark.parametrize("shape", [(1, 8, 6, 3), (4, 1, 1, 3), (0, 5, 5, 3)])
def test_dynamic_axes_match_any_size(shape: tuple[int, ...]) -> None:
    (sample,) = opened([[np.zeros(shape, np.float32)]], [spec((-1, -1, -1, 3))])
    assert sample.inputs[0].shape == shape


def test_swapped_inputs() -> None:
    inputs = [spec((1, 2)), spec((1, 3), name="y:0", key="y")]
    wide = np.zeros((1, 3), np.float32)
    check_message([wide, GOOD], inputs, "it would fit the input 'y': are the inputs in the model's order", [GOOD, wide])


@pytest.mark.parametrize(
    ("array", "dtypes", "message"),
    [
        (np.zeros((1, 2)), (FLOAT,), "got float64, expected float32; use array.astype(np.float32)"),
        (np.zeros((1, 2), np.uint8), (FLOAT,), "got uint8, expected float32; use array.astype(np.float32)"),
        (np.zeros((1, 2)), (INT8, FLOAT), "got float64, expected int8 or float32; use array.astype(np.float32)"),
        (np.zeros((1, 2), np.float32), (INT8,), "got float32, expected int8; quantize it first"),
        (np.zeros((1, 2), np.int64), (np.dtype(np.int32),), "got int64, expected int32; use array.astype(np.int32) if"),
        ([[0.5, 1.5]], (FLOAT,), "got float64, expected float32; use array.astype(np.float32)"),
        (np.array([["a", "b"]]), (FLOAT,), "got text (ndarray), expected an array of float32"),
        ("a.png", (FLOAT,), "got text (str), expected an array of float32"),
        (None, (FLOAT,), "got Python objects (NoneType), expected an array of float32"),
        (np.array([[None, 1]]), (FLOAT,), "got Python objects (ndarray)"),
        ([[1.0], [1.0, 2.0]], (FLOAT,), "a list cannot be made an array"),
    ],
)
def test_dtype(array: Any, dtypes: tuple[np.dtype, ...], message: str) -> None:
    check_message([array], [spec((1, 2), *dtypes)], "input 'x': " + message, [np.zeros((1, 2), dtypes[0])])


def test_python_numbers_pass_where_the_dtype_is_the_same() -> None:
    (sample,) = opened([[[[1, 2]]]], [spec((1, 2), np.dtype(np.int64))])
    np.testing.assert_array_equal(sample.inputs[0], [[1, 2]])
    (sample,) = opened([[True]], [spec((), np.dtype(bool))])
    assert sample.inputs[0].shape == ()


def test_text_passes_where_the_model_takes_text() -> None:
    (sample,) = opened([[np.array(["a", "bc"])]], [spec((2,), np.dtype(np.bytes_))])
    assert sample.inputs[0].tolist() == ["a", "bc"]


def test_all_accepted_dtypes_pass() -> None:
    both = [spec((1, 2), INT8, FLOAT)]
    dtypes = [sample.inputs[0].dtype for sample in opened([[GOOD], [GOOD.astype(np.int8)]], both)]
    assert dtypes == [np.float32, np.int8]


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        ([[1, np.nan]], "1 of 2 value is NaN or infinite, the first is nan at (0, 1)"),
        ([[-np.inf, np.nan]], "2 of 2 values are NaN or infinite, the first is -inf at (0, 0)"),
    ],
)
@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
def test_nan_and_infinity(bad: list[list[float]], message: str, dtype: Any) -> None:
    check_message([np.array(bad, dtype)], [spec((1, 2), np.dtype(dtype))], message, [np.zeros((1, 2), dtype)])


def test_large_finite_values_pass() -> None:
    huge = np.full((1, 2), np.finfo(np.float32).max)
    assert len(list(opened([[huge]], [spec((1, 2))]))) == 1


# ----------------------------------------------------------------------------------------------------------------------
# Empty, exhausted, failing, endless


@pytest.mark.parametrize(
    "source",
    [[], (), {}, {"image": values()[:0]}, values()[:0], lambda: iter([]), iter([]), lambda: [][:0]],
    ids=["list", "tuple", "dict", "dict of arrays", "array", "function", "iterator", "function of list"],
)
def test_empty(source: Any) -> None:
    message = error_of(source, role="representative dataset")
    assert message.startswith("representative dataset: ")
    assert "yielded no samples" in message


def test_generator_object_is_good_for_one_pass() -> None:
    dataset = opened(rows())
    assert dataset.length is None
    assert len(list(dataset)) == COUNT
    assert dataset.length == COUNT
    with pytest.raises(DatasetError, match=r"already consumed after 5 samples; pass a function that returns a new"):
        list(dataset)


def test_generator_object_is_consumed_by_part_of_a_pass() -> None:
    dataset = opened(rows())
    assert next(iter(dataset)).index == 0
    with pytest.raises(DatasetError, match=r"debug dataset, sample 0: .*already consumed after 1 samples"):
        list(dataset)


def test_function_that_returns_the_same_iterator() -> None:
    generator = rows()
    dataset = opened(lambda: generator)
    assert len(list(dataset)) == COUNT
    with pytest.raises(DatasetError, match="already consumed after 5 samples"):
        list(dataset)


def test_functions_own_generator_is_closed_after_the_limit_and_not_read_further() -> None:
    events: list[Any] = []

    def source() -> Iterator[list[np.ndarray]]:
        try:
            for index, row in enumerate(rows()):
                events.append(index)
                yield row
        finally:
            events.append("closed")

    assert len(list(opened(source, limit=2))) == 2
    assert events == [0, 1, "closed"]


def test_lazy_sources_hold_one_sample() -> None:
    alive: list[int] = []
    seen: list[int] = []

    class Counted(np.ndarray):
        def __del__(self) -> None:
            alive.pop()

    def source() -> Iterator[list[np.ndarray]]:
        for row in rows():
            alive.append(1)
            yield [row[0].copy().view(Counted)]

    for sample in opened(source):
        seen.append(len(alive))
        del sample
    assert seen
    assert max(seen) <= 2


def test_users_exception_names_the_sample_and_is_the_cause() -> None:
    def source() -> Iterator[list[np.ndarray]]:
        yield next(rows())
        raise KeyError("no such picture")

    with pytest.raises(DatasetError, match=r"debug dataset, sample 1: function .*raised KeyError: 'no such") as caught:
        list(opened(source))
    assert isinstance(caught.value.__cause__, KeyError)


def test_function_that_cannot_be_called() -> None:
    assert "raised TypeError" in error_of(lambda path: iter([]))


@pytest.mark.parametrize("source", [None, 3, lambda: None, "no/such/file", "no_such.npz"])
def test_what_is_no_dataset(source: Any) -> None:
    message = error_of(source)
    assert "expected a function that returns samples, a list of samples" in message


def test_interrupt_is_not_swallowed() -> None:
    def source() -> Iterator[list[np.ndarray]]:
        raise KeyboardInterrupt
        yield

    with pytest.raises(KeyboardInterrupt):
        list(opened(source))


@pytest.mark.parametrize("limit", [0, -1, 1.5, True, "3"])
def test_bad_limit(limit: Any) -> None:
    with pytest.raises(OptionError, match="limit must be a whole number of at least 1"):
        opened(rows, limit=limit)


def test_length_and_description_before_and_after_a_pass() -> None:
    assert opened(values()).length == COUNT
    assert opened(values(), limit=3).length == 3
    assert opened(values(), limit=3).description == "array (first 3 of 5 samples)"
    dataset = opened(rows, limit=100)
    assert dataset.length is None
    assert dataset.description.endswith("rows (at most 100 samples)")
    list(dataset)
    assert dataset.length == COUNT
    assert dataset.description.endswith("rows (5 samples)")
    assert repr(dataset).startswith("<debug dataset: function ")


def test_limits_of_a_dataset_that_is_opened_again_add_up() -> None:
    assert opened(opened(rows, limit=2), limit=4).limit == 2
    assert len(list(opened(lambda: opened(rows, limit=2)))) == 2


def test_arrays_of_unlike_length() -> None:
    message = error_of({"image": values(), "labels": LABELS[:4]})
    assert "the arrays differ in their number of samples: {'image': 5, 'labels': 4}" in message


def test_scalar_array() -> None:
    assert "got an array without axes" in error_of(np.ones(()))


# ----------------------------------------------------------------------------------------------------------------------
# Files


def test_damaged_npz(tmp_path: Path) -> None:
    (tmp_path / "x.npz").write_bytes(b"not an archive")
    assert f"debug dataset: cannot read {tmp_path / 'x.npz'}" in error_of(tmp_path / "x.npz")


def test_npz_with_pickled_objects(tmp_path: Path) -> None:
    np.savez(tmp_path / "x.npz", image=np.array([{}, {}], dtype=object))
    assert "cannot read 'image'" in error_of(tmp_path / "x.npz")


def test_an_array_that_nobody_named_is_the_only_input(tmp_path: Path) -> None:
    np.savez(tmp_path / "x.npz", values())
    found = list(opened(tmp_path / "x.npz"))
    assert [sample.inputs[0].tobytes() for sample in found] == [row[np.newaxis].tobytes() for row in values()]
    np.savez(tmp_path / "xy.npz", values(), LABELS)
    assert "the model has no input 'arr_0'" in error_of(tmp_path / "xy.npz")


def test_npz_of_another_name(tmp_path: Path) -> None:
    np.savez(tmp_path / "x.npz", imge=values())
    assert "the model has no input 'imge', it takes ['image']. Did you mean 'image'" in error_of(tmp_path / "x.npz")


def test_file_of_unknown_kind(tmp_path: Path) -> None:
    (tmp_path / "x.txt").write_text("1")
    assert "cannot take samples from the file" in error_of(tmp_path / "x.txt")


@pytest.mark.parametrize(
    ("files", "message"),
    [
        (["image/first.npy"], "is not called by a number, expected image/<n>.npy"),
        (["image/1.npy", "image/01.npy"], "have the same number"),
        (["image/0.npy", "image/1.npy", "mask/0.npy"], "the input 'mask' lacks 1.npy"),
    ],
)
def test_folder_names(files: list[str], message: str, tmp_path: Path) -> None:
    for name in files:
        (tmp_path / name).parent.mkdir(exist_ok=True)
        np.save(tmp_path / name, values()[:1])
    assert message in error_of(tmp_path)


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("labels.txt", "1\n2\n", "2 labels for 5 samples"),
        ("labels.csv", "file,label\n8.npy,1\n", "has no label for sample 9"),
        ("labels.csv", "8.npy;1\n", "got 1 columns in '8.npy;1', expected file,label"),
    ],
)
def test_folder_labels_that_do_not_fit(name: str, text: str, message: str, tmp_path: Path) -> None:
    make_folder(tmp_path)
    (tmp_path / "labels.txt").unlink()
    (tmp_path / name).write_text(text)
    assert message in error_of(tmp_path)


@pytest.mark.parametrize(
    ("lines", "labels"),
    [
        ("1 2 3 4 5", [1, 2, 3, 4, 5]),
        ("1 2.5 3 4 5", [1.0, 2.5, 3.0, 4.0, 5.0]),
        ("a 2 3 4 5", ["a", "2", "3", "4", "5"]),
    ],
)
def test_kinds_of_text_labels(lines: str, labels: list[Any], tmp_path: Path) -> None:
    make_folder(tmp_path)
    (tmp_path / "labels.txt").write_text("\n".join(lines.split()) + "\n\n")
    assert [sample.label for sample in opened(tmp_path)] == labels


def test_empty_folder(tmp_path: Path) -> None:
    pytest.importorskip("PIL")
    assert "holds no images" in error_of(tmp_path)
    assert "no <input>/<n>.npy" in error_of(tmp_path)


# ----------------------------------------------------------------------------------------------------------------------
# save_folder


@pytest.mark.parametrize("labels", [LABELS, None, ["a", "b", "c", "d", "e"], [[0.5, 1]] * 5])
def test_save_and_open_again(labels: list[Any] | None, tmp_path: Path) -> None:
    inputs = [IMAGE, spec((-1, 2), INT8, name="a/b:0", key=None)]
    extra = np.arange(10, dtype=np.int8).reshape(5, 1, 2)
    columns = {"image": values(), "a/b:0": extra}
    if labels is not None:
        columns["labels"] = np.array(labels)
    progress: list[tuple[int, int | None]] = []
    target = tmp_path / "not there yet" / "saved"
    count = save_folder(opened(columns, inputs), target, progress=lambda done, total: progress.append((done, total)))
    assert count == COUNT
    assert progress == [(done, COUNT) for done in range(1, COUNT + 1)]
    assert sorted(path.name for path in target.iterdir() if path.is_dir()) == ["a%2Fb%3A0", "image"]
    assert (target / "labels.npy").exists() == (labels is not None)
    assert [path.name for path in target.parent.iterdir()] == ["saved"]
    again = list(opened(target, inputs))
    for sample, original in zip(again, opened(columns, inputs), strict=True):
        for array, expected in zip(sample.inputs, original.inputs, strict=True):
            assert array.dtype == expected.dtype
            np.testing.assert_array_equal(array, expected)
        np.testing.assert_array_equal(sample.label, original.label)


def test_save_into_an_empty_folder_and_not_into_another(tmp_path: Path) -> None:
    target = tmp_path / "saved"
    target.mkdir()
    assert save_folder(opened(rows), target) == COUNT
    with pytest.raises(OutputError, match="exists and is not an empty folder"):
        save_folder(opened(rows), target)
    assert len(list(opened(target))) == COUNT
    (tmp_path / "file").write_text("")
    with pytest.raises(OutputError, match="exists and is not an empty folder"):
        save_folder(opened(rows), tmp_path / "file")


def test_save_leaves_nothing_behind_when_a_sample_is_bad(tmp_path: Path) -> None:
    with pytest.raises(DatasetError, match="sample 1"):
        save_folder(opened([next(rows()), [np.zeros(3, np.float32)]]), tmp_path / "saved")
    assert list(tmp_path.iterdir()) == []


def test_full_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: Any, **__: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(np, "save", full)
    with pytest.raises(OutputError, match=r"cannot write the debug dataset to .*No space left on device"):
        save_folder(opened(rows), tmp_path / "saved")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("elements", "message"),
    [
        ([{"image": values()[:1], "label": 1}, {"image": values()[:1]}], "a folder holds one kind of sample"),
        ([("a", {"image": values()[:1]}), ("b", {"image": values()[:1]})], "a folder holds one kind of sample"),
        ([{"image": values()[:1], "label": label} for label in ([1], [1, 2])], "cannot be saved as one array"),
        ([{"image": values()[:1], "label": {}}], "cannot be saved as one array"),
    ],
)
def test_what_a_folder_cannot_hold(elements: list[Any], message: str, tmp_path: Path) -> None:
    with pytest.raises(DatasetError, match=message):
        save_folder(opened(elements, labels=True), tmp_path / "saved")


# ----------------------------------------------------------------------------------------------------------------------
# module:function and query strings


def test_function_string_that_fails(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    make_module(tmp_path, "five_failing")
    (tmp_path / "broken_module.py").write_text("import no_such_module_at_all\n")
    path_before = list(sys.path)
    with pytest.raises(OptionError, match="importing no_such_one failed with ModuleNotFoundError"):
        opened("no_such_one:rows")
    with pytest.raises(OptionError, match=r"importing broken_module failed with .*no_such_module_at_all"):
        opened("broken_module:rows")
    with pytest.raises(OptionError, match=r"five_failing has no function 'row'. Did you mean 'rows'"):
        opened("five_failing:row")
    with pytest.raises(OptionError, match="is a int, expected a function"):
        opened("five_failing:constant")
    assert sys.path == path_before


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("images:folder?siz=3", r"images: has no option 'siz', it has \['size', .*Did you mean 'size'"),
        ("images:folder?split=3", "images: has no option 'split'"),
        ("images:folder?size", "expects size=value, got 'size'"),
        ("images:folder?size=axb", "is not a size, expected WIDTHxHEIGHT"),
        ("images:folder?size=1x2x3", "is not a size, expected WIDTHxHEIGHT"),
        ("images:folder?size=0", "is empty, expected WIDTHxHEIGHT"),
        ("images:folder?scale=1/255", "scale='1/255' is not a number"),
        ("images:folder?offset=nan", "offset='nan' is not a finite number"),
        ("images:folder?mode=RGBX", "unknown mode 'RGBX'.*Did you mean 'RGB'"),
        ("images:folder?resample=bilinar", "unknown resample 'bilinar'.*Did you mean 'bilinear'"),
        ("images:?size=3", "images: lacks a name"),
        ("tfds:?split=test", "tfds: lacks a name"),
        ("tfds:mnist?splt=test", "tfds: has no option 'splt'.*Did you mean 'split'"),
    ],
)
def test_query_options(text: str, message: str) -> None:
    with pytest.raises(OptionError, match=message):
        opened(text)


# ----------------------------------------------------------------------------------------------------------------------
# Images


def write_images(folder: Path, names: list[str], images: np.ndarray | None = None) -> None:
    image_module = pytest.importorskip("PIL.Image")
    for name, image in zip(names, pixels() if images is None else images, strict=False):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        image_module.fromarray(image).save(folder / name)


NAMES = ["a.png", "b.bmp", "c.PNG", "d.png", "e.bmp"]
QUERY = f"?scale={SCALE}&offset={OFFSET}"


def test_contract_images(tmp_path: Path) -> None:
    write_images(tmp_path, NAMES)
    (tmp_path / "notes.txt").write_text("not an image")
    check_same_samples(opened(f"images:{tmp_path}{QUERY}"), labels=None)
    check_same_samples(opened(from_images(tmp_path, scale=SCALE, offset=OFFSET)), labels=None)
    check_same_samples(opened(from_images(tmp_path, size=(6, 8), scale=SCALE, offset=OFFSET, mode="RGB")), labels=None)
    with open(tmp_path / "labels.csv", "w", newline="") as file:
        csv.writer(file).writerows([("file", "label"), *reversed(list(zip(NAMES, LABELS, strict=True)))])
    check_same_samples(opened(f"images:{tmp_path}{QUERY}"), labels=LABELS)


def test_contract_image_classes(tmp_path: Path) -> None:
    write_images(tmp_path, ["cat/2.png", "cat/3.png", "dog/1.png", "eel/0.png", "eel/1.png"])
    (tmp_path / "dove").mkdir()  # a class without images has its number all the same
    (tmp_path / "bat").mkdir()
    check_same_samples(opened(f"images:{tmp_path}{QUERY}"), labels=[1, 1, 2, 4, 4])


def test_plain_folder_of_images_has_pixels_as_float(tmp_path: Path) -> None:
    write_images(tmp_path, NAMES)
    for sample, image in zip(opened(tmp_path), pixels(), strict=True):
        np.testing.assert_array_equal(sample.inputs[0][0], image.astype(np.float32))


def test_raw_pixels_for_a_model_of_bytes(tmp_path: Path) -> None:
    write_images(tmp_path, NAMES)
    raw = [spec((1, 8, 6, 3), np.dtype(np.uint8))]
    for sample, image in zip(opened(tmp_path, raw), pixels(), strict=True):
        assert sample.inputs[0].dtype == np.uint8
        np.testing.assert_array_equal(sample.inputs[0][0], image)
    assert "got float32, expected uint8" in error_of(from_images(tmp_path, scale=0.5), raw)
    assert "got float32, expected int8" in error_of(tmp_path, [spec((1, 8, 6, 3), INT8)])


def test_image_of_another_size(tmp_path: Path) -> None:
    write_images(tmp_path, ["a.png"])
    inputs = [spec((1, 4, 2, 3))]
    message = error_of(tmp_path, inputs)
    assert f"debug dataset, sample 0: {tmp_path / 'a.png'}: got an image of 6x8, expected 2x4" in message
    assert "add size=2x4" in message
    (sample,) = opened(f"images:{tmp_path}?size=2x4&resample=box", inputs)
    boxes = pixels()[0].reshape(4, 2, 2, 3, 3).mean(axis=(1, 3))
    np.testing.assert_allclose(sample.inputs[0][0], boxes, atol=1.01)  # Pillow rounds after each of the two axes
    assert "got shape (4, 4, 3), expected (1, 4, 2, 3)" in error_of(from_images(tmp_path, size=4), inputs)


def test_dynamic_size_takes_images_as_they_are(tmp_path: Path) -> None:
    write_images(tmp_path, ["a.png"])
    (sample,) = opened(tmp_path, [spec((1, -1, -1, 3))])
    assert sample.inputs[0].shape == (1, 8, 6, 3)


@pytest.mark.parametrize(
    ("shape", "got"),
    [((1, 8, 6, 1), (1, 8, 6, 1)), ((1, 8, 6), (1, 8, 6)), ((8, 6), (8, 6)), ((8, 6, 3), (8, 6, 3)),
     ((-1, 8, 6, 4), (1, 8, 6, 4)), ((1, 8, 6, -1), (1, 8, 6, 3))],
)  # fmt: skip
def test_mode_follows_the_models_channels(shape: tuple[int, ...], got: tuple[int, ...], tmp_path: Path) -> None:
    write_images(tmp_path, ["a.png"])
    (sample,) = opened(tmp_path, [spec(shape)])
    assert sample.inputs[0].shape == got


@pytest.mark.parametrize(
    ("shape", "message"),
    [((1, 8, 6, 2), "images have 1, 3 or 4 channels"), ((1, 64), "images do not fit the input 'x' (1, 64) float32")],
)
def test_inputs_that_are_no_images(shape: tuple[int, ...], message: str, tmp_path: Path) -> None:
    write_images(tmp_path, ["a.png"])
    assert message in error_of(tmp_path, [spec(shape)])


def test_images_for_two_inputs(tmp_path: Path) -> None:
    write_images(tmp_path, ["a.png"])
    assert "Number of inputs provided (1) does not match number of inputs to the model (2)" in error_of(tmp_path, TWO)


def test_images_that_cannot_be_used(tmp_path: Path) -> None:
    write_images(tmp_path, ["deep/a.png"], np.full((1, 8, 6), 40000, np.uint16))
    assert "has more than 8 bits per channel" in error_of(tmp_path / "deep")
    (tmp_path / "damaged").mkdir()
    (tmp_path / "damaged" / "a.png").write_bytes(b"\x89PNG\r\n\x1a\n")
    assert "cannot read the image" in error_of(tmp_path / "damaged")
    write_images(tmp_path, ["mixed/a.png", "mixed/thumbs/a.png"])
    assert "has images itself and in its subfolders ['thumbs']" in error_of(tmp_path / "mixed")
    assert "there is no folder" in error_of(f"images:{tmp_path / 'absent'}")


@pytest.mark.parametrize("name", ["images", "tfds"])
def test_folder_that_is_called_like_a_form(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_images(tmp_path / name, NAMES)
    monkeypatch.chdir(tmp_path)
    assert len(list(opened(name))) == COUNT


def test_image_labels_that_lack_one(tmp_path: Path) -> None:
    write_images(tmp_path, ["a.png", "b.png"])
    (tmp_path / "labels.csv").write_text("a.png,1\nB.png,2\n")
    assert "has no label for b.png. Did you mean 'B.png'" in error_of(tmp_path)


# ----------------------------------------------------------------------------------------------------------------------
# tf.data


@pytest.fixture(scope="session")
def tf() -> Any:
    return pytest.importorskip("tensorflow")


TF_SOURCES: dict[str, Callable[[Any], Any]] = {
    "tensors": lambda data: data.from_tensor_slices(values()),
    "batched": lambda data: data.from_tensor_slices(values()).batch(1),
    "dicts": lambda data: data.from_tensor_slices({"image": values()}),
    "tuples": lambda data: data.from_tensor_slices((values(),)),
    "unknown length": lambda data: data.from_tensor_slices(values()).filter(lambda _: True),
    "generator": lambda data: data.from_generator(lambda: values(), output_types="float32"),
}


@pytest.mark.parametrize("kind", TF_SOURCES)
def test_contract_tf_data(kind: str, tf: Any) -> None:
    check_same_samples(opened(TF_SOURCES[kind](tf.data.Dataset)), labels=None)


@pytest.mark.parametrize("inputs", [values(), {"image": values()}], ids=["tensor", "dict"])
def test_contract_tf_data_with_labels(inputs: Any, tf: Any) -> None:
    check_same_samples(opened(tf.data.Dataset.from_tensor_slices((inputs, LABELS)), labels=True), labels=LABELS)


def test_contract_tensors(tf: Any) -> None:
    check_same_samples(opened(lambda: ([tf.constant(row[0])] for row in rows())), labels=None)
    check_same_samples(opened(tf.constant(values())), labels=None)
    source = [([tf.constant(row[0])], tf.constant(label)) for (row, label) in labelled(lambda image: [image])]
    check_same_samples(opened(source, labels=True), labels=LABELS)


def test_contract_representative_dataset_of_tensorflow(tf: Any) -> None:
    check_same_samples(opened(tf.lite.RepresentativeDataset(rows)), labels=None)


def test_tf_data_length_and_batches(tf: Any) -> None:
    data = tf.data.Dataset.from_tensor_slices(values())
    assert opened(data).length == COUNT
    assert opened(data.filter(lambda _: True)).length is None
    with pytest.raises(DatasetError, match="the samples never end"):
        opened(data.repeat())
    assert len(list(opened(data.repeat(), limit=12))) == 12
    assert opened(data.repeat(), limit=12).length == 12
    assert "yielded no samples" in error_of(data.take(0))


BATCHED: dict[str, Callable[[Any, Any], Any]] = {
    "dynamic": lambda data, _: data.from_tensor_slices(values()).batch(4),
    "static": lambda data, _: data.from_tensor_slices(values()).batch(COUNT, drop_remainder=True),
    "by ones": lambda data, _: data.from_tensor_slices(values()).batch(1, drop_remainder=True),
    "dicts": lambda data, _: data.from_tensor_slices({"image": values()}).batch(2),
    "function": lambda data, _: lambda: data.from_tensor_slices(values()).batch(3),
    "filtered": lambda data, tf: data.from_tensor_slices(values()).batch(2).filter(lambda batch: tf.size(batch) > 0),
}


@pytest.mark.parametrize("kind", BATCHED)
def test_contract_batches_of_tf_data(kind: str, tf: Any) -> None:
    """A training pipeline has batches; a model that is converted takes one sample."""
    check_same_samples(opened(BATCHED[kind](tf.data.Dataset, tf)), labels=None)


@pytest.mark.parametrize("batch", [0, 2, COUNT])
@pytest.mark.parametrize("role", ["representative dataset", "debug dataset", "evaluation dataset", "training data"])
def test_labelled_tf_data_serves_any_role(role: str, batch: int, tf: Any) -> None:
    data = tf.data.Dataset.from_tensor_slices((values(), LABELS))
    data = data.batch(batch) if batch else data
    check_same_samples(opened(data, role=role), labels=LABELS)
    check_same_samples(opened(lambda: data, role=role), labels=LABELS)


def test_a_pair_of_tf_data_is_the_inputs_of_a_model_with_two(tf: Any) -> None:
    pairs = tf.data.Dataset.from_tensor_slices((np.arange(6.0).reshape(3, 2), np.arange(9.0).reshape(3, 3)))
    inputs = [spec((1, 2), np.dtype(np.float64), "a", "a"), spec((1, 3), np.dtype(np.float64), "b", "b")]
    for data in (pairs, pairs.batch(2)):
        samples = list(opened(data, inputs))
        assert [sample.inputs[1].tolist() for sample in samples] == [[[0.0, 1.0, 2.0]], [[3.0, 4.0, 5.0]], [[6.0, 7.0, 8.0]]]
        assert [sample.label for sample in samples] == [None] * 3
    nested = tf.data.Dataset.zip((pairs, tf.data.Dataset.range(3))).batch(3)
    assert [sample.label for sample in opened(nested, inputs)] == [0, 1, 2]


def test_batches_that_the_model_takes_stay_together(tf: Any) -> None:
    data = tf.data.Dataset.from_tensor_slices(values()).batch(2, drop_remainder=True)
    assert [sample.inputs[0].shape for sample in opened(data, [spec((2, 8, 6, 3))])] == [(2, 8, 6, 3)] * 2
    assert [sample.inputs[0].shape for sample in opened(data, [spec((-1, 8, 6, 3))])] == [(1, 8, 6, 3)] * 4
    assert "got shape (2, 8, 6, 3), expected (1, 8, 7, 3)" not in error_of(data, [spec((1, 8, 7, 3))])
    assert "got shape (8, 6, 3), expected (1, 8, 7, 3)" in error_of(data, [spec((1, 8, 7, 3))])


# ----------------------------------------------------------------------------------------------------------------------
# TensorFlow Datasets


@pytest.fixture(scope="session")
def tfds_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A data_dir with the five images, prepared by the real tensorflow_datasets."""
    tfds: Any = pytest.importorskip("tensorflow_datasets")
    data_dir = tmp_path_factory.mktemp("tfds")

    class FiveDigits(tfds.core.GeneratorBasedBuilder):
        VERSION = tfds.core.Version("1.2.0")
        SUPPORTED_VERSIONS = [tfds.core.Version("1.10.0")]

        def _info(self) -> Any:
            features = {
                "image": tfds.features.Image(shape=(8, 6, 3)),
                "values": tfds.features.Tensor(shape=(8, 6, 3), dtype=np.float32),
                "label": tfds.features.ClassLabel(num_classes=10),
            }
            return tfds.core.DatasetInfo(
                builder=self,
                features=tfds.features.FeaturesDict(features),
                supervised_keys=("image", "label"),
                disable_shuffling=True,
            )

        def _split_generators(self, dl_manager: Any) -> Any:
            return {"train": self._generate_examples(), "test": self._generate_examples()}

        def _generate_examples(self) -> Iterator[Any]:
            for index, (image, value, label) in enumerate(zip(pixels(), values(), LABELS, strict=True)):
                yield index, {"image": image, "values": value, "label": label}

    for version in ("1.2.0", "1.10.0"):
        FiveDigits(data_dir=str(data_dir), version=version).download_and_prepare()
    return data_dir


def test_contract_tfds(tfds_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    where = f"split=test&data_dir={tfds_dir}"
    check_same_samples(opened(f"tfds:five_digits?{where}&scale={SCALE}&offset={OFFSET}"), labels=LABELS)
    check_same_samples(opened(f"tfds:five_digits:1.2.0?{where}&image=values"), labels=LABELS)
    check_same_samples(opened(f"tfds:five_digits/1.10.0?{where}&image=values&label=label"), labels=LABELS)
    monkeypatch.setenv("TFDS_DATA_DIR", str(tfds_dir))
    resized = from_tfds("five_digits", split="train", size=(6, 8), scale=SCALE, offset=OFFSET, mode="RGB")
    check_same_samples(opened(resized), labels=LABELS)


def test_tfds_splits_versions_and_inputs_by_name(tfds_dir: Path) -> None:
    dataset = opened(from_tfds("five_digits", split="train+test[:40%]", data_dir=tfds_dir))
    assert dataset.length == 7
    assert dataset.description == "tfds:five_digits/1.10.0 split train+test[:40%] (7 samples)"
    assert [sample.label for sample in dataset] == LABELS + LABELS[:2]
    assert opened(f"tfds:five_digits?split=train+test[:40%]&data_dir={tfds_dir}").length == 7
    inputs = [spec((1, 8, 6, 3), key="values"), spec((1,), np.dtype(np.int64), name="label", key=None)]
    sample = next(iter(opened(from_tfds("five_digits", split="test", data_dir=tfds_dir), inputs)))
    np.testing.assert_array_equal(sample.inputs[0][0], values()[0])
    assert sample.inputs[1].tolist() == LABELS[:1]


def test_tfds_image_of_another_size(tfds_dir: Path) -> None:
    inputs = [spec((1, 4, 2, 3))]
    message = error_of(from_tfds("five_digits", split="test", data_dir=tfds_dir), inputs)
    assert "add size=2x4" in message
    resized = from_tfds("five_digits", split="test", data_dir=tfds_dir, size="2x4")
    assert [sample.inputs[0].shape for sample in opened(resized, inputs)] == [(1, 4, 2, 3)] * COUNT


def test_tfds_image_is_resized_and_converted_for_dynamic_and_gray_inputs(tfds_dir: Path) -> None:
    resized = from_tfds("five_digits", split="test[:1]", data_dir=tfds_dir, size=4)
    assert [sample.inputs[0].shape for sample in opened(resized, [spec((1, -1, -1, 3))])] == [(1, 4, 4, 3)]
    (gray,) = opened(from_tfds("five_digits", split="test[:1]", data_dir=tfds_dir), [spec((1, 8, 6, 1))])
    weights = np.array([0.299, 0.587, 0.114])  # of ITU-R 601, which Pillow takes
    np.testing.assert_allclose(gray.inputs[0][0, ..., 0], pixels()[0] @ weights, atol=1)


def test_tfds_that_is_not_there(tfds_dir: Path, tmp_path: Path) -> None:
    message = error_of(f"tfds:mnist?split=test&data_dir={tfds_dir}")
    assert f"mnist is not prepared in {tfds_dir}, which holds ['five_digits/1.10.0', 'five_digits/1.2.0']" in message
    assert "Nothing is downloaded here: prepare it with" in message
    assert "which holds no prepared dataset" in error_of(f"tfds:mnist?split=test&data_dir={tmp_path}")
    assert "five_digits:3.0.0 is not prepared" in error_of(f"tfds:five_digits:3.0.0?split=test&data_dir={tfds_dir}")
    assert "Did you mean 'five_digits'" in error_of(f"tfds:five_digit?split=test&data_dir={tfds_dir}")


@pytest.mark.parametrize(
    ("query", "message"),
    [
        ("", r"has the splits \['train', 'test'\]: say which, for example split=test\[:100\]"),
        ("split=tset", "cannot be read: Unknown split 'tset'.*Did you mean 'test'"),
        ("split=test[", "cannot be read"),
        ("split=test&image=img", "image=img: five_digits/1.10.0 has no such feature.*Did you mean 'image'"),
        ("split=test&label=lable", "label=lable: .*Did you mean 'label'"),
    ],
)
def test_tfds_options(query: str, message: str, tfds_dir: Path) -> None:
    with pytest.raises(OptionError, match=message):
        opened(f"tfds:five_digits?data_dir={tfds_dir}" + (f"&{query}" if query else ""))


def test_tfds_configurations_are_told_apart(tmp_path: Path) -> None:
    pytest.importorskip("tensorflow_datasets")
    for folder in ("digits/small/1.0.0", "digits/large/1.0.0"):
        (tmp_path / folder).mkdir(parents=True)
        (tmp_path / folder / "dataset_info.json").write_text("{}")
    with pytest.raises(OptionError, match=r"in several configurations, name one of \['digits/large', 'digits/small'\]"):
        opened(f"tfds:digits?split=test&data_dir={tmp_path}")
    assert f"cannot read {tmp_path / 'digits/small/1.0.0'}" in error_of(f"tfds:digits/small?data_dir={tmp_path}")


# ----------------------------------------------------------------------------------------------------------------------
# What is not installed


def run_python(code: str, *blocked: str) -> str:
    """Runs code in a new interpreter in which the named packages cannot be imported."""
    block = f"import sys\nfor name in {blocked!r}: sys.modules[name] = None\n"
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-c", block + textwrap.dedent(code)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False, timeout=120)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_board_needs_numpy_only(tmp_path: Path) -> None:
    """The whole way of a board: a saved folder is opened and read without any of the heavy packages."""
    save_folder(opened(rows), tmp_path / "saved")
    code = f"""
        import numpy as np
        from tflite_qdebug.datasets import InputSpec, open_dataset
        inputs = [InputSpec("serving_default_image:0", (1, 8, 6, 3), (np.dtype(np.float32),), "image")]
        print(len(list(open_dataset({str(tmp_path / "saved")!r}, inputs))))
    """
    blocked = ("tensorflow", "tensorflow_datasets", "pandas", "PIL", "flatbuffers", "matplotlib", "sklearn")
    assert run_python(code, *blocked).strip() == str(COUNT)


def test_import_loads_nothing_heavy() -> None:
    code = """
        import tflite_qdebug.datasets
        print(sorted({"tensorflow", "tensorflow_datasets", "pandas", "PIL", "flatbuffers"} & set(sys.modules)))
    """
    assert run_python(code).strip() == "[]"


@pytest.mark.parametrize(
    ("blocked", "text", "hint"),
    [
        ("PIL", "images:.", "pip install pillow"),
        ("tensorflow_datasets", "tfds:mnist", "pip install tensorflow-datasets"),
    ],
)
def test_missing_packages(blocked: str, text: str, hint: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, blocked, None)
    with pytest.raises(MissingPackageError, match=hint):
        opened(text)


def test_no_file_of_the_package_imports_tensorflow() -> None:
    package = importlib.util.find_spec("tflite_qdebug.datasets")
    assert package is not None
    assert package.origin is not None
    files = list(Path(package.origin).parent.glob("*.py"))
    assert len(files) == 9
    assert not [path.name for path in files if "import tensorflow" in path.read_text().replace("import tensorflow_data", "")]


# ----------------------------------------------------------------------------------------------------------------------


def test_input_spec_takes_dtypes_as_numpy_does() -> None:
    loose = InputSpec("x:0", [1, 2], (np.float32, "int8"))  # type: ignore[arg-type]
    assert loose == InputSpec("x:0", (1, 2), (FLOAT, INT8))
    assert loose.title == "x:0"
    assert str(loose) == "'x:0' (1, 2) float32 or int8"


def test_samples_are_frozen() -> None:
    sample = Sample(0, [GOOD])
    with pytest.raises(AttributeError):
        sample.index = 1  # type: ignore[misc]


def test_dataset_can_be_read_from_another_thread() -> None:
    counts: list[int] = []
    dataset = opened(rows)
    thread = threading.Thread(target=lambda: counts.append(len(list(dataset))))
    thread.start()
    thread.join()
    assert counts == [COUNT]
