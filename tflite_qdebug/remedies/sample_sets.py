"""The three sets of samples that a search needs: to fit, to compare, and to prove."""

from __future__ import annotations

from typing import Any

from tflite_qdebug.analyses.layer_error import RealValued
from tflite_qdebug.conversion import FloatModel
from tflite_qdebug.datasets import Dataset, open_dataset
from tflite_qdebug.datasets.sources import IteratorSource
from tflite_qdebug.errors import DatasetError

__all__ = ["SampleSets"]


class SampleSets:
    """The three datasets.

    Attributes:
        limit: Take the first so many samples of each.
        representative: What ranges, weights and biases are fitted to, as it was given.
        debug: What candidates are compared on.
        evaluation: What proves the result; None: nothing does.
        first: The first debug sample.
    """

    def __init__(self, model: FloatModel, representative: Any, debug: Any, evaluation: Any, limit: int | None) -> None:
        """Looks at the first sample of each.

        Raises:
            DatasetError: For a wrong one, none at all, or an iterator, which is good for one pass.
        """
        self._model, self.limit = model, limit
        self.representative, self.debug, self.evaluation = representative, debug, evaluation
        self.first = next(iter(self.opened(debug, "debug dataset")))
        next(iter(self.opened(representative, "representative dataset")))
        if evaluation is not None:
            next(iter(self.opened(evaluation, "evaluation dataset")))

    def opened(self, source: Any, role: str, limit: int | None = None) -> RealValued:
        """Opens a dataset.

        Raises:
            DatasetError: For a wrong first sample, none at all, or an iterator.
        """
        limit = self.limit if limit is None else min(limit, self.limit or limit)
        dataset: Dataset = open_dataset(source, self._model.model.input_specs(), role, limit, labels="auto")
        if isinstance(dataset.source, IteratorSource):
            raise DatasetError(
                f"got an iterator as {role}, which is good for one pass, and a search takes many; pass a function that returns "
                "a new iterator each time it is called"
            )
        samples = RealValued(dataset, [])
        if not samples.ahead(1):
            raise DatasetError(f"the {role} yielded no samples")
        return samples

    def identity(self) -> list[Any]:
        """Returns what tells these samples from others, as plain data."""
        described: list[Any] = [self.limit]
        for source, role in ((self.representative, "representative dataset"), (self.debug, "debug dataset")):
            samples = self.opened(source, role)
            described += [samples.description, samples.ahead(1)[0].sha256]
        return described
