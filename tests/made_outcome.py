"""Outcomes of a search for remedies, made up: a small one by hand, and one as large as a search on a real model gives."""

from __future__ import annotations

import numpy as np

from tflite_qdebug.outcome import Candidate, Difference, Measured, Outcome, Recipe

#: What breaks reports that paste names into HTML, JavaScript or file names.
EVIL = "</script><script>alert('x')</script> 卷积层 \"&amp;\u2028"


def candidate(
    name: str,
    kind: str,
    value: float,
    size: int,
    *,
    low: float = float("nan"),
    high: float = float("nan"),
    difference: Difference | None = None,
    float_operators: int = 0,
    islands: int = 0,
    milliseconds: float = float("nan"),
    edgetpu: int | None = None,
    met: bool = False,
    recipe: Recipe | None = None,
    metric: str = "top_1",
    sha256: str = "",
) -> Candidate:
    """Returns a candidate of a model with 112 operators."""
    return Candidate(
        name, kind, recipe or Recipe(), size, {metric: Measured(value, low, high)}, {metric: difference} if difference else {},
        float_operators, 112, islands, milliseconds, edgetpu, sha256 or f"{name}-{size}", met, False, 1.5,
    )  # fmt: skip


def small() -> Outcome:
    """Returns a search on 200 samples that met its target with the third candidate, which 500 other samples confirm."""
    recipe = Recipe(
        ranges={"first/Relu": (-1.0, 2.5), EVIL: (0.0, float("inf"))},
        ranges_by="jointly",
        split=("a", "b"),
        float_nodes=("first/Relu", EVIL),
    )
    difference = Difference(-0.005, -0.03, 0.02, 0.77)
    return Outcome(
        target="top_1 >= float - 1%, size <= int8 * 1.1",
        metrics=("top_1",),
        goals={"top_1": 0.81, "size": 1100.0},
        large_is_good={"top_1": True, "size": False},
        candidates=(
            candidate("float", "float", 0.82, 4000, low=0.775, high=0.865, milliseconds=1.75, float_operators=112, islands=1),
            candidate(
                "int8", "int8", 0.47, 1000, low=0.41, high=0.53, milliseconds=3.25,
                difference=Difference(-0.35, -0.4, -0.3, 0.0),
            ),
            candidate(
                f"joint ranges + 2 nodes float {EVIL}", "float nodes", 0.815, 1050, low=0.77, high=0.86, milliseconds=3.5,
                difference=difference, float_operators=2, islands=1, met=True, recipe=recipe,
            ),
        ),
        best=2,
        front=(1, 2),
        proof=(
            candidate("float", "float", 0.80, 4000, low=0.77, high=0.83),
            candidate("int8", "int8", 0.46, 1000, low=0.42, high=0.5, difference=Difference(-0.34, -0.38, -0.3, 1e-9)),
            candidate(
                f"joint ranges + 2 nodes float {EVIL}", "float nodes", 0.786, 1050, low=0.75, high=0.82,
                difference=Difference(-0.014, -0.03, 0.002, 0.2),
            ),
        ),
        proof_samples=500,
        samples=200,
        stopped="target met",
        seconds=125.0,
        notes=("a note on the search",),
        provenance={"seed": 0, "snippets": {f"Paste this {EVIL}": f"denylisted_nodes=[\n    {EVIL!r},\n]"}},
    )  # fmt: skip


def large(count: int = 40) -> Outcome:
    """Returns a search like that on MobileNetV3-Small, out of reach, with candidates of all kinds and an Edge TPU."""
    generator = np.random.default_rng(0)
    made = [
        candidate("float", "float", 0.82, 10_200_000, low=0.775, high=0.865, milliseconds=1.7, float_operators=112, islands=1),
        candidate("int8", "int8", 0.47, 2_895_000, low=0.41, high=0.53, milliseconds=3.2, edgetpu=112),
    ]
    kinds = ("ranges", "bias", "rounding", "equalization", "ranges", "float nodes", "float nodes", "16x8", "training")
    for position in range(count - 2):
        kind = kinds[position % len(kinds)]
        nodes = position if kind in ("float nodes", "16x8") else 0
        value = min(0.81, 0.45 + 0.3 * position / count + 0.004 * nodes + 0.05 * float(generator.random()))
        made.append(
            candidate(
                f"{kind} {position}", kind, round(value, 3), 2_895_000 + 11_000 * nodes, low=value - 0.05, high=value + 0.05,
                difference=Difference(value - 0.82, value - 0.87, value - 0.78, 0.01), float_operators=nodes,
                islands=nodes // 3, milliseconds=3.2 + 0.02 * nodes + 0.1 * float(generator.random()), edgetpu=112 - nodes,
            )
        )  # fmt: skip
    front, reached = [], 0.0
    for position in sorted(range(1, len(made)), key=lambda place: (made[place].size, -made[place].metrics["top_1"].value)):
        if made[position].metrics["top_1"].value > reached:
            front.append(position)
            reached = made[position].metrics["top_1"].value
    return Outcome(
        "top_1 >= float - 0.5%", ("top_1",), {"top_1": 0.815}, {"top_1": True}, tuple(made), front[-1], tuple(front),
        (candidate("all 16-bit", "16x8", 0.8125, 2_990_000), candidate("all float", "float", 0.82, 10_200_000, met=True)),
        samples=200, stopped="out of reach", seconds=431.0,
    )  # fmt: skip
