"""Makes models by recipes: each step of it once, whatever else follows it."""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tflite_qdebug import edit
from tflite_qdebug.collect import Backend
from tflite_qdebug.conversion import CalibratedModel, FloatModel, load_float_model
from tflite_qdebug.datasets import open_dataset
from tflite_qdebug.edit.mixed import FLOAT, NODE, MixedModels
from tflite_qdebug.edit.rescaled import RangeSlot, Rescaler, matched_biases, ranges_by_tensor, slots_by_name
from tflite_qdebug.errors import ConversionError, ModelError, OptionError
from tflite_qdebug.files import write_atomically
from tflite_qdebug.match import Match, match_models
from tflite_qdebug.model import Model
from tflite_qdebug.operators import WEIGHTED
from tflite_qdebug.outcome import Recipe
from tflite_qdebug.remedies.absorption import absorb_high_biases, channel_minima
from tflite_qdebug.remedies.bias_correction import correct_biases
from tflite_qdebug.remedies.equalization import equalize
from tflite_qdebug.remedies.handout import read_recipe
from tflite_qdebug.remedies.int16 import with_int16_nodes
from tflite_qdebug.remedies.ranges import choose_ranges, needed_ranges
from tflite_qdebug.remedies.rounding import optimize_rounding
from tflite_qdebug.remedies.splitting import split_unbalanced

__all__ = ["Base", "Workshop", "apply_recipe"]

Range = tuple[float, float]
# Samples that weights and biases are fitted on: weights follow noise where they are few, means are known by few.
_ROUNDED_SAMPLES, _CORRECTED_SAMPLES = 128, 32
# Of a model with more layers fewer samples, so that fitting takes minutes and not hours.
_MANY_LAYERS = 64
# Each runs the samples again: a pass for each layer of a deep model would take minutes for little more.
_ROUNDING_PASSES = 8


@dataclasses.dataclass(frozen=True)
class Base:
    """A float model, a quantized form of it, and what belongs together in the two.

    Attributes:
        float_model: As it was calibrated.
        quantized: As TensorFlow's quantizer, or the user's tool, made it.
        match: Of both.
    """

    float_model: Model
    quantized: Model
    match: Match

    @functools.cached_property
    def rescaler(self) -> Rescaler:
        """Gives the quantized model other ranges."""
        return Rescaler(self.quantized, matched_biases(self.float_model, self.quantized, self.match))

    @functools.cached_property
    def slots(self) -> dict[str, RangeSlot]:
        """The slot of each activation by its name in the float model."""
        return slots_by_name(self.float_model, self.quantized, self.match, self.rescaler.slots)

    @functools.cached_property
    def mixed(self) -> MixedModels:
        """Puts models together in which some nodes are float."""
        return MixedModels(self.float_model, self.quantized, self.match)

    @classmethod
    def of(cls, float_model: Model, quantized: bytes) -> Base:
        """Matches the two."""
        model = Model(quantized)
        return cls(float_model, model, match_models(float_model, model))


class Workshop:
    """Makes models of one float model.

    Attributes:
        float_model: Where all begins.
        notes: What the reader must know of the steps that were made.
    """

    def __init__(
        self,
        float_model: FloatModel,
        representative_dataset: Any,
        *,
        quantized_model: bytes | None = None,
        limit: int | None = None,
        backend: Backend | None = None,
        progress: bool | None = None,
        folder: Path | None = None,
    ) -> None:
        """Calibrates nothing yet.

        Args:
            float_model: The float model.
            representative_dataset: What ranges, biases and weights are fitted to.
            quantized_model: A quantized form that somebody else made, to begin with instead of TensorFlow's.
            limit: Take the first so many samples.
            backend: Which code runs the models; by default the builtin kernels, so that the same recipe gives the same bytes
                wherever XNNPACK computes otherwise.
            progress: As in `progress.track`.
            folder: Where finished steps are kept, so that an interrupted search finds them again; None: in memory alone.
        """
        # Labels, which it may have, are of no interest here.
        role, specs = "representative dataset", float_model.model.input_specs()
        self._source = open_dataset(representative_dataset, specs, role, limit, labels="auto")
        self.float_model, self._given, self._limit = float_model, quantized_model, limit
        self.backend = (backend or Backend())._replace(kernels="builtin")
        self._progress, self._folder = progress, folder
        self.notes: list[str] = []
        self._calibrated: dict[bool, CalibratedModel] = {}
        self._bases: dict[str, Base] = {}
        self._made: dict[str, bytes] = {}

    @property
    def is_given(self) -> bool:
        """True where the quantized model is somebody else's."""
        return self._given is not None

    def build(self, recipe: Recipe) -> bytes:
        """Returns the model.

        Raises:
            OptionError: For nodes or tensors that the model has not, or steps that do not go together.
            ConversionError: Where TensorFlow cannot quantize the model.
            QDebugError: One of its kinds, as the steps tell.
        """
        if recipe.trained:
            return self._trained(recipe)
        data = self.integer(recipe)
        if recipe.float_nodes or recipe.int16_nodes:
            data = self._made_once(recipe, functools.partial(self._spent, recipe, data))
        return data

    def keep(self, recipe: Recipe, data: bytes) -> None:
        """Keeps what was made elsewhere, by training."""
        self._made_once(recipe, lambda: data)

    def _trained(self, recipe: Recipe) -> bytes:
        def missing() -> bytes:
            raise ConversionError("a model that is trained quantization-aware is made by training, which no recipe repeats")

        return self._made_once(recipe, missing)

    def integer(self, recipe: Recipe) -> bytes:
        """Returns the model before anything is spent: all nodes integer that the quantizer has integer."""
        recipe = dataclasses.replace(recipe, float_nodes=(), int8_weights=False, int16_nodes=())
        base = self.base(recipe)
        data = base.rescaler.apply(self.slot_ranges(recipe)) if recipe.ranges else base.quantized.data
        if recipe.split:
            step = dataclasses.replace(recipe, rounded=False, biases_corrected=False, tuned={})
            data = self._made_once(step, functools.partial(self._split, recipe, data))
        if recipe.rounded or recipe.biases_corrected:
            step = dataclasses.replace(recipe, tuned={})
            fitted = self._rounded if recipe.rounded else self._corrected
            data = self._made_once(step, functools.partial(fitted, recipe, data))
        if recipe.tuned:
            data = self._made_once(recipe, functools.partial(self._retuned, recipe, data))
        return data

    def base(self, recipe: Recipe) -> Base:
        """Returns the float model and its quantized form that a recipe begins with."""
        key = json.dumps([recipe.equalized, recipe.per_channel, recipe.per_channel_dense])
        if key not in self._bases:
            if self._given is not None:
                if recipe.equalized or not recipe.per_channel or not recipe.per_channel_dense:
                    raise OptionError("a model that was quantized elsewhere cannot be equalized or quantized otherwise")
                quantized = self._given
            else:
                calibrated = self.calibrated(recipe.equalized)
                quantized = calibrated.quantize(
                    "int8", per_channel=recipe.per_channel, per_channel_dense=recipe.per_channel_dense
                ).data
            self._bases[key] = Base.of(self._floats(recipe.equalized).model, quantized)
        return self._bases[key]

    def calibrated(self, equalized: bool = False) -> CalibratedModel:
        """Returns the calibrated model, with histograms where the model allows for them."""
        if equalized not in self._calibrated:
            floats = self._floats(equalized)
            options: dict[str, Any] = {"limit": self._limit, "progress": self._progress}
            try:
                found = floats.calibrate(self._source, "exposed", backend=self.backend, **options)
            except OptionError as error:
                self._note(f"{error}. There are no histograms of its values, so that no ranges are chosen from them")
                found = floats.calibrate(self._source, "tensorflow", **options)
            self._calibrated[equalized] = found
        return self._calibrated[equalized]

    def _floats(self, equalized: bool) -> FloatModel:
        if not equalized:
            return self.float_model
        return self._equalized

    @functools.cached_property
    def _equalized(self) -> FloatModel:
        histograms = self.calibrated().histograms
        ranges = {name: (found.minimum, found.maximum) for name, found in histograms.items()}
        data = equalize(self.float_model.model, ranges=ranges).data
        if data != self.float_model.data:
            minima = channel_minima(data, self._source, limit=self._limit, backend=self.backend, progress=self._progress)
            data = absorb_high_biases(data, minima).data
        return FloatModel(data, f"{self.float_model.origin}, equalized")

    @property
    def can_equalize(self) -> bool:
        """True where there are layers whose weights can be made even."""
        return self._given is None and self._equalized.data != self.float_model.data

    def unbalanced(self, recipe: Recipe) -> tuple[str, ...]:
        """Returns the tensors that an operator which joins them with others makes coarse, though others read them too."""
        histograms = self.calibrated(recipe.equalized).histograms
        if not histograms:
            return ()
        ranges = {name: (found.minimum, found.maximum) for name, found in histograms.items() if found.total}
        base = self.base(recipe)
        found = split_unbalanced(base.float_model, Model(self.integer(recipe)), {**ranges, **recipe.ranges})
        return tuple(one.tensor for one in found.split)

    def ranges(self, method: str, share: float = 0.9999, *, equalized: bool = False, useful: bool = True) -> dict[str, Range]:
        """Returns ranges by name, as `choose_ranges` finds them; empty where there are no histograms."""
        calibrated = self.calibrated(equalized)
        needed = needed_ranges(calibrated.model) if useful else None
        counted = {name: found for name, found in calibrated.histograms.items() if found.total}
        return choose_ranges(counted, method, share=share, needed=needed) if counted else {}

    def slot_ranges(self, recipe: Recipe) -> dict[int, Range]:
        """Returns a recipe's ranges as the rescaler takes them."""
        base = self.base(recipe)
        return ranges_by_tensor(base.float_model, base.quantized, base.match, base.rescaler.slots, recipe.ranges)

    def _split(self, recipe: Recipe, data: bytes) -> bytes:
        base = self.base(recipe)
        ranges = {name: (found.minimum, found.maximum) for name, found in self.calibrated(recipe.equalized).histograms.items()}
        return split_unbalanced(base.float_model, Model(data), {**ranges, **recipe.ranges}, tensors=recipe.split).data

    def _rounded(self, recipe: Recipe, data: bytes) -> bytes:
        options: dict[str, Any] = self._fitting(_ROUNDED_SAMPLES)
        floats = self.base(recipe).float_model.data
        # With both, weights and biases are fitted together: a bias that is corrected afterwards knows nothing of them.
        together = recipe.biases_corrected
        return optimize_rounding(floats, data, self._source, passes=_ROUNDING_PASSES, biases=together, **options).data

    def _corrected(self, recipe: Recipe, data: bytes) -> bytes:
        options: dict[str, Any] = self._fitting(_CORRECTED_SAMPLES)
        return correct_biases(self.base(recipe).float_model.data, data, self._source, **options).data

    def _retuned(self, recipe: Recipe, data: bytes) -> bytes:
        base, model = self.base(recipe), Model(data)
        # To split a tensor moves others; nothing else before this step does.
        match = match_models(base.float_model, model) if recipe.split else base.match
        rescaler = Rescaler(model, matched_biases(base.float_model, model, match))
        return rescaler.apply(ranges_by_tensor(base.float_model, model, match, rescaler.slots, recipe.tuned))

    def _spent(self, recipe: Recipe, data: bytes) -> bytes:
        floats = self.base(recipe).float_model
        if recipe.float_nodes:
            base = self.based(recipe)
            left = {base.mixed.node(name).operator for name in recipe.float_nodes}
            data = base.mixed.build(lambda node: FLOAT if node.operator in left else NODE).data
            data = edit.store_weights_as_int8(Model(data)) if recipe.int8_weights else data
        if recipe.int16_nodes:
            data = with_int16_nodes(
                self.calibrated(recipe.equalized),
                recipe.int16_nodes,
                quantized_model=data,
                readers=True,
                per_channel=recipe.per_channel,
                per_channel_dense=recipe.per_channel_dense,
            ).data
        if len(floats.main.outputs) != len(Model(data).main.outputs):
            raise ModelError(
                "leaving nodes float has lost an output of the model: it has no counterpart in the quantized model"
            )
        return data

    def based(self, recipe: Recipe) -> Base:
        """Returns the float model and the integer model of a recipe, matched."""
        data = self.integer(recipe)
        key = hashlib.sha256(data).hexdigest()
        if key not in self._bases:
            self._bases[key] = Base.of(self.base(recipe).float_model, data)
        return self._bases[key]

    def _made_once(self, recipe: Recipe, make: Callable[[], bytes]) -> bytes:
        key = recipe_key(recipe)
        if key not in self._made:
            path = None if self._folder is None else self._folder / f"{key[:20]}.tflite"
            lasting = recipe.rounded or recipe.biases_corrected or recipe.trained
            if path is not None and lasting and path.exists() and not recipe.float_nodes:
                self._made[key] = path.read_bytes()
            else:
                self._made[key] = make()
                if path is not None and lasting and not recipe.float_nodes:
                    write_atomically(path, self._made[key])
        return self._made[key]

    def _fitting(self, samples: int) -> dict[str, Any]:
        """Returns the options of what is fitted: by the model alone, so that a recipe makes the same bytes anywhere."""
        layers = sum(operator.name in WEIGHTED for operator in self.float_model.model.main.operators)
        count = max(8, samples * _MANY_LAYERS // max(layers, _MANY_LAYERS))
        limit = count if self._limit is None else min(self._limit, count)
        return {"limit": limit, "backend": self.backend, "progress": self._progress}

    def _note(self, words: str) -> None:
        if words not in self.notes:
            self.notes.append(words)


def recipe_key(recipe: Recipe) -> str:
    """Returns what tells a recipe from others."""
    return hashlib.sha256(json.dumps(dataclasses.asdict(recipe), sort_keys=True).encode()).hexdigest()


def apply_recipe(
    float_model: Any,
    recipe: Recipe | str | os.PathLike[str],
    representative_dataset: Any,
    *,
    limit: int | None = None,
    backend: Backend | None = None,
    progress: bool | None = None,
) -> bytes:
    """Returns the model that a recipe makes; the same float model, recipe and dataset give the same bytes.

    Args:
        float_model: Anything that `load_float_model` takes, such as one's own converter.
        recipe: A `Recipe`, or a file that a search for remedies wrote.
        representative_dataset: Anything that `open_dataset` takes.
        limit: Take the first so many samples.
        backend: Which code runs the models.
        progress: As in `progress.track`.

    Raises:
        OptionError: Where the recipe is of another model, or cannot be read.
        ConversionError: For a recipe with training, which is made by `train_quantization_aware`.
        QDebugError: One of its kinds, as the steps tell.
    """
    found = recipe if isinstance(recipe, Recipe) else read_recipe(recipe)
    if found.trained:
        raise ConversionError("the recipe is of a model that was trained quantization-aware, which 'tflite-qdebug qat' makes")
    workshop = Workshop(load_float_model(float_model), representative_dataset, limit=limit, backend=backend, progress=progress)
    return workshop.build(found)
