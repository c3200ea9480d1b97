"""Finds the cheapest change of a quantized model that reaches a target.

First what costs nothing: other ranges, rounding, biases, all operators integer. Then what costs something: nodes left float (or
in 16 bits), the most sensitive first, as many as it takes, and of these only those that are needed. Ranges, weights and biases
are fitted to the representative dataset, candidates are compared on the debug dataset, and the winner is measured once on the
evaluation dataset, which decides nothing.
"""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import json
import math
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from tflite_qdebug import tf_private
from tflite_qdebug.analyses.evaluation import METRICS as ACCURACIES
from tflite_qdebug.analyses.evaluation import task_functions
from tflite_qdebug.analyses.mixed_pair import Task
from tflite_qdebug.collect import Backend
from tflite_qdebug.conversion import KERAS_SUFFIXES, FloatModel, load_float_model
from tflite_qdebug.edit import expose
from tflite_qdebug.errors import ConversionError, DatasetError, InterpreterError, ModelError, OptionError, did_you_mean
from tflite_qdebug.files import write_atomically
from tflite_qdebug.model import Model, read_model_bytes
from tflite_qdebug.outcome import SPENDING, UNITS, Candidate, Measured, Outcome, Recipe
from tflite_qdebug.remedies.cost import described, edgetpu_operators
from tflite_qdebug.remedies.handout import save_recipe
from tflite_qdebug.remedies.int16 import int16_model
from tflite_qdebug.remedies.judging import Judge
from tflite_qdebug.remedies.logbook import Logbook
from tflite_qdebug.remedies.ranking import Ranking
from tflite_qdebug.remedies.sample_sets import SampleSets
from tflite_qdebug.remedies.scoring import VALUES, Scored, Scorer, decision_tensors, latency
from tflite_qdebug.remedies.spending import Spending
from tflite_qdebug.remedies.target import Clause, Target, parse_target
from tflite_qdebug.remedies.tuning import tune_ranges
from tflite_qdebug.remedies.workshop import Base, Workshop, recipe_key
from tflite_qdebug.shown import Shown
from tflite_qdebug.wording import byte_size

__all__ = ["SPENDING", "Fixed", "fix"]

_SECONDS = 900.0
# Of the time that is left when ranges are tuned, and how many samples they are tuned on.
_TUNING_SHARE, _TUNING_SAMPLES, _TUNED_SLOTS, _ROUNDS = 0.3, 100, 48, 1
# Where less of the time is left, no weights or biases are fitted any more.
_LEAST_SHARE = 0.4
# Models that are measured in one pass: each holds an interpreter.
_AT_ONCE = 16
# Of the values of a tensor, which share its range holds.
_SHARES = (0.99999, 0.9999, 0.9998, 0.999, 0.998)


@dataclasses.dataclass(frozen=True)
class Fixed(Shown):
    """What a search hands back.

    Attributes:
        outcome: All that was tried, and how far it got.
        data: The best ``.tflite``.
        float_model: The float ``.tflite`` that it was made of.
        int8_model: The quantized one before any remedy.
    """

    outcome: Outcome
    data: bytes
    float_model: bytes
    int8_model: bytes

    @property
    def recipe(self) -> Recipe:
        """How to make it again."""
        return self.outcome.candidates[self.outcome.best].recipe

    def __repr__(self) -> str:
        return f"Fixed({byte_size(len(self.data))}, {self.outcome!r})"


# What an outcome says of why the search ended while it has not.
_RUNNING = "running"


class _EndError(Exception):
    """The search ends here; its text says why."""


def fix(
    float_model: Any,
    target: str | Sequence[str],
    representative_dataset: Any,
    debug_dataset: Any,
    *,
    evaluation_dataset: Any = None,
    metrics: Sequence[str | Callable[..., Any]] = (),
    label_offset: int = 0,
    quantized_model: Any = None,
    spend: str = "float",
    spend_by: Sequence[str] = UNITS,
    edgetpu: bool = False,
    explore: bool = False,
    per_channel: bool = True,
    per_channel_dense: bool = True,
    training_data: Any = None,
    limit: int | None = None,
    folder: str | Path | None = None,
    backend: Backend | None = None,
    progress: bool | None = None,
    updated: Callable[[Outcome], None] = lambda outcome: None,
) -> Fixed:
    """Finds the cheapest change that reaches a target.

    Args:
        float_model: Anything that `load_float_model` takes.
        target: As `parse_target` reads it: ``"accuracy >= float - 0.5%, size <= int8 + 1%, time <= 10 min"``.
        representative_dataset: Calibrates, and what ranges, weights and biases are fitted to.
        debug_dataset: Compares candidates; other samples than those, with labels for task metrics.
        evaluation_dataset: Proves the result; samples that are in neither of the two. None: nothing is proved.
        metrics: Task metrics: ``top_1``, ``top_5``, ``module:function`` or functions ``f(outputs, label) -> number``.
        label_offset: Added to each label.
        quantized_model: A quantized form made elsewhere, to begin with; None: TensorFlow's quantizer makes it.
        spend: What may be spent, of `SPENDING`: nodes left ``float``, nodes in 16 bits (``int16``), or ``nothing``: all
            operators stay int8, as integer accelerators need it.
        spend_by: In what units, of `UNITS`: single nodes, whole blocks (see `find_blocks`), all operators of a type.
        edgetpu: Also predict how many operators map to the Edge TPU.
        explore: Go on where the target is met, to see the whole front.
        per_channel: False: one scale for all channels of a weight, in all candidates.
        per_channel_dense: False: the same for dense layers alone.
        training_data: Samples to train on quantization-aware, where nothing else reaches the target; for Keras models alone.
        limit: Take the first so many samples of each dataset.
        folder: A folder in which everything is kept: the best model so far, its recipe, what has been measured. With the same
            arguments an interrupted search goes on from there.
        backend: Which code runs the models.
        progress: As in `progress.track`.
        updated: Called with what is known so far, after each step.

    Returns:
        The best model found, also where the search was interrupted, out of time, or the target out of reach.

    Raises:
        OptionError: For a target that means nothing, or not for this model.
        DatasetError: For wrong, missing or unlabelled samples, or an iterator, which is good for one pass.
        ModelError: Where the model cannot be read, or is no pair with the quantized one.
        ConversionError: Where the model cannot be quantized at all.
        MetricError: Where a task metric fails on a sample.
        OutputError: Where the folder cannot be written.
    """
    if spend not in SPENDING:
        raise OptionError(f"got spend={spend!r}, expected one of {', '.join(SPENDING)}")
    units = (spend_by,) if isinstance(spend_by, str) else tuple(spend_by)
    unknown = [unit for unit in units if unit not in UNITS]
    if unknown or not units:
        hint = did_you_mean(unknown[0], UNITS) if unknown else ""
        raise OptionError(f"got spend_by={spend_by!r}, expected some of {', '.join(UNITS)}.{hint}")
    functions = task_functions(metrics)
    wanted = parse_target(target, functions)
    for clause in wanted.quality:
        if clause.metric in ACCURACIES:
            functions.setdefault(clause.metric, ACCURACIES[clause.metric])
    trainable = tf_private.is_keras_model(float_model) or str(float_model).endswith(KERAS_SUFFIXES)
    if training_data is not None and not trainable:
        raise OptionError(
            f"got training data for {type(float_model).__name__}, which cannot be trained; expected a Keras model"
        )
    floats = load_float_model(float_model)
    train = None if training_data is None else functools.partial(_trained, float_model, training_data, label_offset)
    search = _Search(
        floats,
        wanted,
        SampleSets(floats, representative_dataset, debug_dataset, evaluation_dataset, limit),
        Task(functions, label_offset),
        None if quantized_model is None else read_model_bytes(getattr(quantized_model, "data", quantized_model)),
        _Options(Recipe(per_channel=per_channel, per_channel_dense=per_channel_dense), spend, units, edgetpu, explore, train),
        None if folder is None else Path(folder),
        backend or Backend(),
        progress,
        updated,
    )
    return search.run()


@dataclasses.dataclass(frozen=True)
class _Options:
    start: Recipe
    spend: str
    units: tuple[str, ...]
    edgetpu: bool
    explore: bool
    train: Callable[[Any, bool | None], bytes] | None


def _trained(model: Any, training_data: Any, label_offset: int, representative: Any, progress: bool | None) -> bytes:
    from tflite_qdebug.remedies.qat import train_quantization_aware

    result = train_quantization_aware(model, training_data, label_offset=label_offset, progress=progress)
    return result.convert(representative, progress=progress).data


class _Search:
    def __init__(
        self,
        float_model: FloatModel,
        target: Target,
        data: SampleSets,
        task: Task,
        quantized: bytes | None,
        options: _Options,
        folder: Path | None,
        backend: Backend,
        progress: bool | None,
        updated: Callable[[Outcome], None],
    ) -> None:
        self._begun = time.monotonic()
        self._float, self._target, self._data, self._task = float_model, target, data, task
        self._options, self._backend, self._progress, self._updated = options, backend, progress, updated
        self._start = options.start
        self._folder = None if folder is None else folder / "fix"
        key = [float_model.model.sha256, hashlib.sha256(quantized or b"").hexdigest(), data.identity(), task.identity]
        self._notes: list[str] = []
        self._logbook = Logbook(self._folder, json.dumps([*key, backend.identity]))
        work = None if self._folder is None else self._folder / "work"
        self._workshop = Workshop(
            float_model,
            data.representative,
            quantized_model=quantized,
            limit=data.limit,
            backend=backend,
            progress=progress,
            folder=work,
        )
        self._check_labels()
        debug = data.opened(data.debug, "debug dataset")
        self._debug_described = debug.description
        self._scorer = Scorer(float_model.model, debug, self._task, backend, progress)
        self._judge = Judge(self._target, next(iter(self._task.functions), "sqnr_db"))
        self._ranking = Ranking(self._workshop, data, self._scorer, self._logbook, self._folder, progress)
        self._upper: list[Candidate] = []
        self._written = ""

    # -- the target --

    def _check_labels(self) -> None:
        """Lets agreement with the float model stand for accuracy where there are no labels, and says so."""
        clauses = [clause for clause in self._target.quality if clause.metric in ACCURACIES]
        if not clauses or self._data.first.label is not None:
            return
        for clause in clauses:
            if clause.base != "float" or clause.factor != 1.0 or clause.metric != "top_1":
                raise DatasetError(
                    f"the debug samples have no labels, which {clause.metric} needs; expected labels, or a target such as "
                    "'agreement >= 99%': the share of samples on which the model answers as the float model does"
                )
            new = Clause("agreement", True, "", 1.0, 1.0 + clause.offset, True)
            self._target = self._target.replaced(clause, new)
            self._notes.append(
                f"the debug samples have no labels: '{new}' (agreement with the float model) stands for '{clause}'"
            )
        functions = {name: function for name, function in self._task.functions.items() if function not in ACCURACIES.values()}
        self._task = Task(functions, self._task.label_offset)

    # -- the run --

    def run(self) -> Fixed:
        """Goes through all stages; what ends it early leaves the best so far."""
        self._plain()
        stopped = "target met"
        try:
            self._stages()
            if not self._judge.candidates[self._judge.best()].met and self._target.quality:
                stopped = "out of reach"
            elif not self._target.quality:
                stopped = "all was tried"
        except _EndError as end:
            stopped = str(end)
        except KeyboardInterrupt:
            stopped = "interrupted"
        outcome = self._outcome(stopped)
        data = self._bytes_of(outcome.candidates[outcome.best])
        if stopped != "interrupted":
            outcome = self._proved(self._timed(outcome), data)
        self._write(outcome)
        return Fixed(outcome, data, self._float.data, self._workshop.build(self._start))

    def _plain(self) -> None:
        """Measures float and plain int8, and what the target means in numbers."""
        plain = self._start
        data = self._workshop.build(plain)
        scored = self._measured({"int8": data})["int8"]
        nothing = Measured(0.0, 0.0, 0.0)
        perfect = {"cosine": 1.0, "agreement": 1.0, "sqnr_db": math.inf}
        metrics = {name: Measured(perfect.get(name, 0.0)) if name in perfect else nothing for name in scored.metrics}
        metrics.update(self._scorer.float_metrics)
        floats = described(self._float.data, Candidate("float", "float", Recipe(), len(self._float.data), metrics))
        self._judge.candidates = [floats, self._candidate("int8", "int8", plain, data, scored)]
        self._judge.scored[recipe_key(plain)] = scored
        if any(clause.metric == "latency" for clause in self._target.budgets):
            self._judge.candidates = [self._with_latency(one) for one in self._judge.candidates]
        self._judge.set_goals()
        self._judge.candidates[1] = self._judged(self._judge.candidates[1])
        self._report()

    def _stages(self) -> None:
        if not self._is_done():
            self._bound()
            self._integer()
        if self._options.spend != "nothing" and not self._is_done():
            self._spend()
        if self._options.train is not None and not self._is_done():
            self._train()

    def _train(self) -> None:
        """Trains quantization-aware: the last resort, which moves weights that the user had reasons for."""
        assert self._options.train is not None
        recipe = Recipe(trained=True)
        try:
            self._workshop.build(recipe)
        except ConversionError:
            self._workshop.keep(recipe, self._options.train(self._data.representative, self._progress))
        self._try([("trained quantization-aware", "training", recipe)])

    def _is_done(self) -> bool:
        return bool(self._target.quality) and self._judge.candidates[self._judge.best()].met and not self._options.explore

    def _bound(self) -> None:
        """Measures the model with 16-bit activations throughout: what more bits can give back at all."""
        try:
            data = int16_model(self._workshop.calibrated()).data
            scored = self._measured({"all 16-bit": data})["all 16-bit"]
            self._upper = [self._candidate("all 16-bit", "16x8", Recipe(int16_nodes=("*",)), data, scored)]
        except (ConversionError, InterpreterError, ModelError, OptionError) as error:
            self._note(f"what 16 bits could give back is not known: {error}")

    # -- all operators stay integer --

    def _integer(self) -> None:
        def variants() -> None:
            self._try(self._variants(self._judge.best_integer().recipe))

        # A bias that was right for the old ranges need not be for the new ones, so that these are fitted before and not after.
        for stage in (lambda: self._try(self._ranged()), variants, self._fit, self._tune):
            if self._is_done():
                return
            stage()

    def _ranged(self) -> list[tuple[str, str, Recipe]]:
        chosen: dict[str, dict[str, tuple[float, float]]] = {}
        for share in _SHARES:
            chosen[f"percentile {100.0 * share:g} %"] = self._workshop.ranges("percentile", share)
        for method in ("mse", "entropy"):
            chosen[method] = self._workshop.ranges(method)
        chosen["what their readers need"] = self._workshop.ranges("minmax")
        return [
            (f"ranges by {name}", "ranges", dataclasses.replace(self._start, ranges=ranges, ranges_by=name))
            for name, ranges in chosen.items()
            if ranges
        ]

    def _variants(self, recipe: Recipe) -> list[tuple[str, str, Recipe]]:
        """Returns the same with unbalanced tensors split, or other weights: equalized, or dense layers with one scale."""
        found = []
        unbalanced = self._workshop.unbalanced(recipe)
        if unbalanced:
            changed = dataclasses.replace(recipe, split=unbalanced)
            found.append((f"{recipe.in_words()} + {len(unbalanced)} tensors split", "ranges", changed))
        if self._workshop.is_given:
            return found
        try:
            if self._workshop.can_equalize:
                ranges = self._ranges_again(recipe)
                changed = dataclasses.replace(recipe, equalized=True, ranges=ranges)
                found.append((f"{recipe.in_words()} + equalized weights", "equalization", changed))
        except ModelError as error:
            self._note(f"weights are not equalized: {error}")
        dense = any(operator.name == "FULLY_CONNECTED" for operator in self._float.model.main.operators)
        if dense and recipe.per_channel and recipe.per_channel_dense:
            changed = dataclasses.replace(recipe, per_channel_dense=False)
            found.append((f"{recipe.in_words()} + dense layers per tensor", "weights", changed))
        return found

    def _ranges_again(self, recipe: Recipe) -> dict[str, tuple[float, float]]:
        """Returns ranges chosen as a recipe's are, for the equalized model, whose values are others."""
        if not recipe.ranges:
            return {}
        if recipe.ranges_by.startswith("percentile "):
            share = float(recipe.ranges_by.split()[1]) / 100.0
            return self._workshop.ranges("percentile", share, equalized=True)
        method = recipe.ranges_by if recipe.ranges_by in ("mse", "entropy") else "minmax"
        return self._workshop.ranges(method, equalized=True)

    def _fit(self) -> None:
        """Rounds weights and corrects biases, each and both."""
        recipe = self._judge.best_integer().recipe
        if recipe.tuned or recipe.rounded or recipe.biases_corrected:
            return
        words_before = recipe.in_words()
        corrected, rounded = dataclasses.replace(recipe, biases_corrected=True), dataclasses.replace(recipe, rounded=True)
        both = dataclasses.replace(rounded, biases_corrected=True)
        steps = (("biases", "bias", corrected), ("rounding", "rounding", rounded), ("rounding and biases", "rounding", both))
        for words, kind, changed in steps:
            # What comes behind may be what it takes: each of these takes as long as it takes.
            if self._is_done() or self._left() < _LEAST_SHARE * self._limit:
                return
            if changed is both and self._judge.best_integer().recipe == recipe:
                return  # neither is of use: what is wrong is something else
            self._try([(f"{words_before} + {words}", kind, changed)])

    def _tune(self) -> None:
        best = self._judge.best_integer()
        base = self._workshop.based(best.recipe)
        decisions = [index for index, kind in decision_tensors(base.quantized) if kind != VALUES]
        order = list(self._ranking.by_damage(best.recipe))
        tensors = [base.slots[name].tensors[0] for name in self._slot_names(base, order)][:_TUNED_SLOTS]
        if not tensors:
            self._note("no range could be tuned: none can change that the outputs depend on")
            return
        exposed = Base(base.float_model, Model(expose(base.quantized, decisions)), base.match) if decisions else base
        scorer, quick = (self._tuning_scorer(count) for count in (_TUNING_SAMPLES, _TUNING_SAMPLES // 4))
        ends = time.monotonic() + self._left() * _TUNING_SHARE
        memory = self._logbook.part("tuning " + recipe_key(best.recipe))
        tuned = tune_ranges(
            exposed.rescaler,
            scorer,
            tensors,
            quick=quick,
            rounds=_ROUNDS,
            time_left=lambda: ends - time.monotonic(),
            memory=memory,
            remember=self._logbook.save,
        )
        names = {slot.tensors[0]: name for name, slot in base.slots.items()}
        chosen = {names[tensor]: ends_of for tensor, ends_of in tuned.ranges.items()}
        if not tuned.finished:
            self._note(f"the time for tuning ranges ran out after {tuned.tried} models; more time may give more")
        if chosen:
            recipe = dataclasses.replace(best.recipe, tuned=chosen)
            self._try([(f"{best.recipe.in_words()}, {len(chosen)} tuned together", "ranges", recipe)])

    def _tuning_scorer(self, count: int) -> Scorer:
        samples = self._data.opened(self._data.representative, "representative dataset", max(count, 8))
        what = "calibration samples"
        return Scorer(self._float.model, samples, Task({}, 0), self._scorer.backend, self._progress, what)

    def _slot_names(self, base: Base, order: Sequence[str]) -> list[str]:
        """Returns the activations that can be tuned, those of sensitive nodes and what these read first."""
        floats = base.float_model.main
        found: dict[str, None] = {}
        for name in order:
            for operator in floats.nodes.get(name, ()):
                for index in (*operator.outputs, *operator.inputs):
                    tensor = floats.tensors[index].name if index >= 0 else ""
                    if tensor in base.slots and not base.slots[tensor].fixed:
                        found[tensor] = None
        return list(found)

    # -- what costs something --

    def _spend(self) -> None:
        Spending(self._options.spend, self._judge, self._ranking, self._try, self._note, self._options.units).run()

    # -- trying --

    def _try(self, recipes: Sequence[tuple[str, str, Recipe]]) -> list[Candidate | None]:
        """Measures models, those that are not known; returns one for each, None where it cannot be made."""
        known = {recipe_key(candidate.recipe): candidate for candidate in self._judge.candidates[1:]}
        new = {recipe_key(recipe): (label, kind, recipe) for label, kind, recipe in recipes}
        new = {key: entry for key, entry in new.items() if key not in known}
        keys = list(new)
        for start in range(0, len(keys), _AT_ONCE):
            if self._left() <= 0.0:
                raise _EndError("time")
            self._measure_all({key: new[key] for key in keys[start : start + _AT_ONCE]})
        known = {recipe_key(candidate.recipe): candidate for candidate in self._judge.candidates[1:]}
        return [known.get(recipe_key(recipe)) for _, _, recipe in recipes]

    def _measure_all(self, new: Mapping[str, tuple[str, str, Recipe]]) -> None:
        made: dict[str, bytes] = {}
        for key, (label, _, recipe) in new.items():
            try:
                made[key] = self._workshop.build(recipe)
            except (ConversionError, ModelError, OptionError, InterpreterError) as error:
                self._note(f"{label}: {error}")
        before = self._judge.best()
        for key, scored in self._measured(made).items():
            label, kind, recipe = new[key]
            self._judge.scored[key] = scored
            self._judge.candidates.append(self._judged(self._candidate(label, kind, recipe, made[key], scored)))
        if self._judge.best() != before:
            best = self._judge.best()
            self._judge.candidates[best] = dataclasses.replace(self._judge.candidates[best], kept=True)
        self._report()

    def _measured(self, models: Mapping[str, bytes]) -> dict[str, Scored]:
        """Measures models on the debug samples; those that have been in an earlier run of the search are known."""
        hashes = {name: hashlib.sha256(data).hexdigest() for name, data in models.items()}
        known = {name: found for name in models if (found := self._logbook.scored(hashes[name])) is not None}
        missing = {name: data for name, data in models.items() if name not in known}
        if missing or not self._scorer.float_metrics:
            # Even where all are known, the float model's own metrics are not.
            again = missing or dict(list(models.items())[:1])
            measured = self._scorer.measure(again)
            for name, scored in measured.items():
                self._logbook.put_scored(hashes[name], scored)
                known[name] = scored
                for note in scored.notes:
                    self._note(note)
            self._logbook.save()
        return {name: known[name] for name in models}

    def _candidate(self, name: str, kind: str, recipe: Recipe, data: bytes, scored: Scored) -> Candidate:
        candidate = Candidate(name, kind, recipe, len(data), scored.metrics, scored.differences)
        candidate = dataclasses.replace(described(data, candidate), seconds=time.monotonic() - self._begun)
        if self._options.edgetpu:
            candidate = dataclasses.replace(candidate, edgetpu_operators=edgetpu_operators(data))
        return candidate

    def _judged(self, candidate: Candidate) -> Candidate:
        clauses = [clause for clause in self._target.clauses if clause.metric != "time"]
        if any(clause.metric == "latency" for clause in clauses):
            others = [clause for clause in clauses if clause.metric != "latency"]
            if not self._judge.is_met(candidate, others):
                return candidate
            candidate = self._with_latency(candidate)
        return dataclasses.replace(candidate, met=self._judge.is_met(candidate, clauses))

    def _with_latency(self, candidate: Candidate) -> Candidate:
        if not math.isnan(candidate.milliseconds):
            return candidate
        data = self._float.data if candidate.kind == "float" else self._bytes_of(candidate)
        found = latency(data, self._data.first.inputs, self._scorer.backend)
        return dataclasses.replace(candidate, milliseconds=found)

    def _bytes_of(self, candidate: Candidate) -> bytes:
        return self._workshop.build(candidate.recipe)

    # -- what is known --

    @property
    def _limit(self) -> float:
        """Seconds that the search may take."""
        return _SECONDS if math.isinf(self._target.seconds) else self._target.seconds

    def _left(self) -> float:
        return self._limit - (time.monotonic() - self._begun)

    def _outcome(self, stopped: str) -> Outcome:
        from tflite_qdebug import __version__

        names = [clause.metric for clause in self._target.quality]
        metrics = tuple(dict.fromkeys([*names, *self._task.functions, self._judge.main]))
        return Outcome(
            str(self._target),
            metrics,
            {
                clause.metric: self._judge.goals[str(clause)]
                for clause in self._target.clauses
                if str(clause) in self._judge.goals
            },
            {name: self._judge.large_is_good(name) for name in metrics},
            tuple(self._judge.candidates),
            self._judge.best(),
            self._judge.front(),
            tuple(self._upper),
            samples=self._scorer.samples,
            stopped=stopped,
            seconds=time.monotonic() - self._begun,
            notes=tuple(dict.fromkeys([*self._notes, *self._workshop.notes])),
            provenance={
                "tflite_qdebug": __version__,
                "float_model": self._float.origin,
                "float_model_sha256": self._float.model.sha256,
                "representative_dataset": self._workshop.calibrated().dataset,
                "debug_dataset": self._debug_described,
                "spend": self._options.spend,
                "spend_by": self._options.units,
                **self._scorer.provenance,
            },
        )

    def _report(self) -> None:
        """Writes what is known, and tells it."""
        outcome = self._outcome(_RUNNING)
        self._write(outcome)
        self._updated(outcome)

    def _write(self, outcome: Outcome) -> None:
        if self._folder is None:
            return
        from tflite_qdebug.findings import save_part

        best = outcome.candidates[outcome.best]
        if best.sha256 != self._written:
            write_atomically(self._folder / "fixed.tflite", self._bytes_of(best))
            save_recipe(best.recipe, self._folder / "recipe.json")
            self._written = best.sha256
        save_part(self._folder.parent, "fix", outcome)
        self._logbook.save(now=outcome.stopped != _RUNNING)

    def _timed(self, outcome: Outcome) -> Outcome:
        """Adds the latency of what a reader would compare."""
        shown = {0, 1, outcome.best, *outcome.front}
        found = [self._with_latency(one) if i in shown else one for i, one in enumerate(outcome.candidates)]
        self._judge.candidates = found
        return dataclasses.replace(outcome, candidates=tuple(found))

    def _proved(self, outcome: Outcome, data: bytes) -> Outcome:
        """Measures float, plain int8 and the best once on the evaluation samples."""
        if self._data.evaluation is None:
            return outcome
        samples = self._data.opened(self._data.evaluation, "evaluation dataset")
        scorer = Scorer(self._float.model, samples, self._task, self._scorer.backend, self._progress, "evaluation samples")
        plain, best = outcome.candidates[1], outcome.candidates[outcome.best]
        models = {"int8": self._bytes_of(plain), "fixed": data}
        scored = scorer.measure(models)
        floats = dataclasses.replace(outcome.candidates[0], metrics={**outcome.candidates[0].metrics, **scorer.float_metrics})
        proof = [floats]
        for one, name in ((plain, "int8"), (best, "fixed")):
            measured = scored[name]
            proof.append(dataclasses.replace(one, metrics=measured.metrics, differences=measured.differences))
        met = self._judge.is_met(proof[-1], [clause for clause in self._target.quality if clause.base != "int8"])
        proof[-1] = dataclasses.replace(proof[-1], met=met)
        return dataclasses.replace(outcome, proof=tuple(proof), proof_samples=scorer.samples)

    def _note(self, words: str) -> None:
        if words not in self._notes:
            self._notes.append(words)
