"""Ranges of activations tuned together: each is tried wider and narrower, and what lowers the error at the outputs is kept.

A range that is best for its own tensor (least squares, a percentile) is not best for the model: what clips here may be what the
next layer does not need, and errors of several layers add up or cancel. So the error at the outputs decides, on samples that
no later comparison uses.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Mapping, MutableMapping, Sequence
from typing import Any

from tflite_qdebug.edit.rescaled import RangeSlot, Rescaler
from tflite_qdebug.remedies.scoring import Scored, Scorer

__all__ = ["Tuned", "tune_ranges"]

Range = tuple[float, float]
# The factor by which an end of a range is moved, in the first round and in later ones, and how often at most.
_STEPS, _MOST_STEPS = (1.3, 1.12, 1.05), 12
# A change counts where it lowers the objective by more than this part of it, and for so many of the random choices of the
# samples: less is noise of single roundings, which other samples would not bear out.
_LEAST_GAIN, _LEAST_CHANCE = 1e-3, 0.9
# An end nearer to zero than this part of the other is left at its place: it has no steps of its own to win.
_NEGLIGIBLE = 0.02


@dataclasses.dataclass(frozen=True)
class Tuned:
    """What tuning found.

    Attributes:
        ranges: ``{tensor of the quantized model: (minimum, maximum)}`` of the slots that changed, by each one's first tensor.
        objective: At the end, on the samples of the tuning.
        before: At the beginning.
        tried: How many models were measured.
        finished: False where time ran out.
    """

    ranges: Mapping[int, Range]
    objective: float
    before: float
    tried: int
    finished: bool


def tune_ranges(
    rescaler: Rescaler,
    scorer: Scorer,
    order: Sequence[int],
    *,
    quick: Scorer | None = None,
    rounds: int = 2,
    time_left: Callable[[], float] = lambda: math.inf,
    memory: MutableMapping[str, Any] | None = None,
    remember: Callable[[], None] = lambda: None,
) -> Tuned:
    """Tunes the ranges of slots one after another, by the error at the outputs.

    Args:
        rescaler: Of the quantized model, with the ranges to start from.
        scorer: Of the samples to tune on, best those of the calibration: others are needed to see whether it holds.
        order: Tensors of the quantized model, the most sensitive first: their slots are tuned in this order.
        quick: Of some of these samples: what does not help on them is not tried on all.
        rounds: How often all are tried; each round moves the ends by less. It ends earlier where a round changes nothing.
        time_left: Seconds that are left; it ends where they run out.
        memory: What was decided so far, by round and slot; what is in it is not measured again.
        remember: Called when something was added to it.

    Raises:
        QDebugError: One of its kinds, as `Scorer.measure` tells.
    """
    return _Tuner(rescaler, scorer, quick, {} if memory is None else memory, remember, time_left).tune(order, rounds)


class _Tuner:
    def __init__(
        self,
        rescaler: Rescaler,
        scorer: Scorer,
        quick: Scorer | None,
        memory: MutableMapping[str, Any],
        remember: Callable[[], None],
        time_left: Callable[[], float],
    ) -> None:
        self._rescaler, self._scorer, self._quick = rescaler, scorer, quick or scorer
        self._memory, self._remember, self._time_left = memory, remember, time_left
        self._slots = {tensor: slot for slot in rescaler.slots for tensor in slot.tensors}
        self._ranges: dict[int, Range] = {}
        self._tried = 0
        self._now: Scored | None = None
        self._quick_now: Scored | None = None

    def tune(self, order: Sequence[int], rounds: int) -> Tuned:
        slots = list(dict.fromkeys(self._slots[tensor] for tensor in order if tensor in self._slots))
        slots = [slot for slot in slots if not slot.fixed]
        if "before" not in self._memory:
            self._memory["before"] = self._present().objective
        before = objective = self._memory["before"]
        for number in range(rounds):
            changed = False
            for slot in slots:
                key = f"{number}.{slot.tensors[0]}"
                if key not in self._memory:
                    if self._time_left() <= 0.0:
                        return self._tuned(objective, before, False)
                    self._memory[key] = self._best(slot, _STEPS[min(number, len(_STEPS) - 1)])
                    self._remember()
                if self._memory[key] is not None:
                    low, high, objective = self._memory[key]
                    self._ranges[slot.tensors[0]] = (low, high)
                    changed = True
            if not changed and number:
                break
        return self._tuned(objective, before, True)

    def _tuned(self, objective: float, before: float, finished: bool) -> Tuned:
        return Tuned(dict(self._ranges), objective, before, self._tried, finished)

    def _present(self) -> Scored:
        """Returns how good the model is with the ranges chosen so far; what came from memory has to be measured once."""
        if self._now is None:
            self._now = self._measured(self._scorer, {"now": {}})["now"]
            self._quick_now = self._now if self._quick is self._scorer else self._measured(self._quick, {"now": {}})["now"]
        return self._now

    def _best(self, slot: RangeSlot, step: float) -> list[float] | None:
        """Returns the best range for a slot and the objective with it; None where the present one is the best.

        Each end is moved in and out; what helps is followed as long as it does.
        """
        now, quick = self._present(), self._quick_now
        assert quick is not None
        best = was = self._ranges.get(slot.tensors[0], (slot.minimum, slot.maximum))
        moves = _moves(was, step)
        for _ in range(_MOST_STEPS):
            choices = {move: _moved(best, move) for move in moves}
            names = {f"{low:.9g} to {high:.9g}": move for move, (low, high) in choices.items()}
            found = self._measured(self._quick, {name: {slot.tensors[0]: choices[move]} for name, move in names.items()})
            name = min(found, key=lambda one: found[one].objective, default="")
            if not name or not found[name].objective < quick.objective * (1.0 - _LEAST_GAIN):
                break
            taken = names[name]
            whole = found[name]
            if self._quick is not self._scorer:
                whole = self._measured(self._scorer, {name: {slot.tensors[0]: choices[taken]}})[name]
            if not _is_better(whole, now):
                break
            helped = [names[other] for other, scored in found.items() if scored.objective < quick.objective]
            best, now, quick = choices[taken], whole, found[name]
            # Further the same way, the other end as it had helped, and both at once.
            others = [move for move in helped if move not in (taken, _opposite(taken)) and 1.0 in move][:1]
            moves = [taken, *others, *((taken[0] * move[0], taken[1] * move[1]) for move in others if 1.0 in taken)]
        if best == was:
            return None
        self._now, self._quick_now = now, quick
        return [*best, now.objective]

    def _measured(self, scorer: Scorer, changes: Mapping[str, Mapping[int, Range]]) -> dict[str, Scored]:
        models = {name: self._rescaler.apply({**self._ranges, **change}) for name, change in changes.items()}
        self._tried += len(models)
        return scorer.measure(models)


def _is_better(one: Scored, other: Scored) -> bool:
    return one.objective < other.objective * (1.0 - _LEAST_GAIN) and one.chance_of_beating(other) >= _LEAST_CHANCE


def _moves(ends: Range, step: float) -> list[Range]:
    """Returns the factors by which the ends are moved: each in and out, as far as it has steps of its own to win."""
    low, high = ends
    moves: list[Range] = []
    if high > -_NEGLIGIBLE * low:
        moves += [(1.0, 1.0 / step), (1.0, step)]
    if -low > _NEGLIGIBLE * high:
        moves += [(1.0 / step, 1.0), (step, 1.0)]
    return moves


def _moved(ends: Range, move: Range) -> Range:
    return ends[0] * move[0], ends[1] * move[1]


def _opposite(move: Range) -> Range:
    return 1.0 / move[0], 1.0 / move[1]
