"""Invented reports with plausible numbers, for tests of tables and pages, and for docs/report.md."""

from __future__ import annotations

import math
from random import Random

from parity_tests.compare.report import Coverage, Histogram, Point, Report, Training

CANDIDATES = ["torch", "keras", "tf1"]
LIMIT = 1e-12
ENVIRONMENT = {
    "versions": {"numpy": "2.4.6", "torch": "2.13.0", "keras": "3.15.1", "tensorflow": "2.21.0"},
    "flags": {"TF_ENABLE_ONEDNN_OPTS": "1", "KERAS_BACKEND": "tensorflow"},
    "cpu": "x86-64, AVX512, 2 cores",
}


def layer_names(depths: tuple[int, ...] = (3, 4, 6, 3)) -> list[tuple[str, tuple[int, ...]]]:
    """The layers of an SE-ResNet of these depths with the shapes of their outputs, in execution order."""
    names: list[tuple[str, tuple[int, ...]]] = [
        (name, (4, 64, 112, 112)) for name in ("conv1", "bn1", "act1")
    ]
    names.append(("maxpool", (4, 64, 56, 56)))
    for stage, blocks in enumerate(depths):
        shape = (4, 256 << stage, 56 >> stage, 56 >> stage)
        parts = ("conv1", "bn1", "act1", "conv2", "bn2", "act2", "conv3", "bn3", "se")
        for block in range(blocks):
            shortcut = ("shortcut.0", "shortcut.1") if block == 0 else ()
            names += [(f"layer{stage + 1}.{block}.{part}", shape) for part in (*parts, *shortcut, "act3")]
    return [*names, ("pooled", (4, 2048)), ("fc", (4, 1000))]


def points(names: list[tuple[str, tuple[int, ...]]], seed: int, candidates: list[str]) -> list[Point]:
    """Rounding noise that grows slowly with the depth; activations alone are exact."""
    random = Random(seed)
    found = []
    for i, (name, shape) in enumerate(names):
        noise = 3e-16 * (1 + 5 * i / len(names)) * random.uniform(0.8, 1.25)
        exact = "act" in name or "pool" in name
        found.append(
            Point(
                name,
                shape,
                {candidate: noise * random.uniform(0.6, 1.8) for candidate in candidates},
                LIMIT,
                noise,
                {c: 0.0 if exact else 2.2e-16 * random.uniform(0.6, 2) for c in candidates},
            )
        )
    return found


def gradients(layers: list[Point], seed: int, candidates: list[str]) -> list[Point]:
    """Gradients of the input, the stages and the parameters; noise grows towards the input."""
    names: list[tuple[str, tuple[int, ...]]] = [("input", (4, 3, 224, 224))]
    names += [(f"layer{stage}", (4, 128 << stage, 56, 56)) for stage in range(1, 5)]
    for layer in layers:
        if "conv" in layer.name or "fc" in layer.name:
            names.append((f"{layer.name}.weight", (64, 64, 3, 3)))
        if "bn" in layer.name:
            names += [(f"{layer.name}.{leaf}", (64,)) for leaf in ("weight", "bias")]
    found = points(names, seed, candidates)
    for i, point in enumerate(found):
        growth = 40 * (1 - i / len(found)) + 1
        point.errors = {candidate: growth * error for candidate, error in point.errors.items()}
        point.noise = growth * (point.noise or 0)
        point.limit = 1e-10
        point.isolated = {}
    return found


def training(steps: int = 20, candidates: list[str] | None = None, *, reference: str = "numpy") -> Training:
    """A falling loss, and differences that double every second step, like those of one ulp."""
    random = Random(steps)
    candidates = candidates or CANDIDATES
    falling = [6.9 * math.exp(-step / 12) + random.uniform(0, 0.15) for step in range(steps)]

    def growth(start: float) -> list[float]:
        return [start * 2 ** min(step / 2, 26) * random.uniform(0.7, 1.4) for step in range(steps)]

    starts = {"loss": 2e-16, "parameters": 3e-16, "statistics": 4e-16, "momentum": 9e-16}
    return Training(
        learning_rates=[0.1 if step < steps // 2 else 0.01 for step in range(steps)],
        losses={name: list(falling) for name in (reference, *candidates)},
        errors={c: {kind: growth(start) for kind, start in starts.items()} for c in candidates},
        worst={c: dict.fromkeys(starts, "layer1.0.bn2.weight") for c in candidates},
        ulp=growth(3e-16),
        limit=1e-9,
        dtype="float64",
        checked_steps=steps,
    )


def histogram(point: str, candidate: str, centre: float = -16.4) -> Histogram:
    edges = [centre - 3 + step / 4 for step in range(25)]
    counts = [int(2e5 * math.exp(-2.2 * (edge + 0.125 - centre) ** 2)) for edge in edges[:-1]]
    return Histogram(point, candidate, edges, counts, zeros=31_412)


def holds(title: str = "se_resnet50", *, steps: int = 20) -> Report:
    """Three correct ports of a network of 166 layers."""
    layers = points(layer_names(), 1, CANDIDATES)
    return Report(
        title,
        "numpy",
        list(CANDIDATES),
        "float64",
        images=(4, 3, 224, 224),
        layers=layers,
        gradients=gradients(layers, 2, CANDIDATES),
        training=training(steps),
        histogram=histogram("fc", "torch"),
        environment=dict(ENVIRONMENT),
        notes=["The weights are random and damped, with random batch-norm statistics."],
    )


def differs(
    title: str = "se_resnet50, another epsilon in keras", *, wrong: str = "layer2.1.bn2", by: float = 3e-6
) -> Report:
    """One layer of one port has another epsilon; later layers inherit the error."""
    report = holds(title)
    random = Random(3)
    names = [point.name for point in report.layers]
    start = names.index(wrong)
    for point in report.layers[start:]:
        point.errors["keras"] = by * random.uniform(0.3, 1.2)
    report.layers[start].isolated["keras"] = by
    for gradient in report.gradients:
        if gradient.name < "layer2.2" and gradient.name not in ("layer2", "fc.weight"):
            gradient.errors["keras"] = by * random.uniform(0.3, 1.2)
    assert report.training
    for errors in report.training.errors["keras"].values():
        errors[:] = [by * 1.5**step for step in range(len(errors))]
    losses = report.training.losses
    losses["keras"] = [loss + 0.02 * step for step, loss in enumerate(losses["keras"])]
    report.histogram = histogram(wrong, "keras", -6.0)
    report.notes = ["keras: layer2.1.bn2 has epsilon 0.001, the reference 1e-05."]
    return report


def deep(layers: int = 800) -> Report:
    """A very deep network, wrong in the middle."""
    blocks = (layers - 6 - 8) // 40
    names = layer_names((blocks, blocks, blocks, blocks))
    names += [(f"layer5.{i}.conv1", (4, 8, 7, 7)) for i in range(layers - len(names))]
    report = Report(f"a network of {layers} layers", "numpy", list(CANDIDATES), "float64")
    report.layers = points(names, 5, CANDIDATES)
    middle = layers // 2
    for i, point in enumerate(report.layers[middle:]):
        point.errors["tf1"] = 1e-10 * 1.01**i
    report.layers[middle].isolated["tf1"] = 1e-10
    return report


def odd() -> Report:
    """NaN, infinity and zero, and a name that contains a script."""
    nan, inf = float("nan"), float("inf")
    errors = [(0.0, 0.0), (1e-16, 0.0), (inf, 1e-15), (nan, inf), (5e-324, 1e300), (1e-13, 1e-11)]
    script = '<script>alert("x")</script>&amp;\x1b[31m\ud800'
    names = [script, "a." * 200 + "end", "conv", "bn", "tiny", "huge"]
    return Report(
        f"odd {script}",
        "mine",
        ["a <b>", "keras"],
        "float32",
        layers=[
            Point(name, (2, 3), {"a <b>": a, "keras": b}, 1e-12, None if i % 2 else 0.0, {"keras": nan})
            for i, (name, (a, b)) in enumerate(zip(names, errors, strict=True))
        ],
        gradients=[Point("input", (), {"keras": 0.0}, 0.0)],
        training=Training(
            [0.1, 0.2, 0.3],
            {"mine": [1.0, inf, nan], "keras": [1.0, nan, 0.0]},
            {"keras": {"loss": [0.0, inf, nan], script: [0.0, 0.0, 0.0]}},
            {"keras": {"loss": script}},
            [0.0, 1e-300, inf],
            1e-12,
            "float32",
            1,
        ),
        histogram=Histogram(script, "a <b>", [-400.0, -300.5, 2.0], [0, 3], 0),
        environment={"<i>": ["</dl>", {"a": 1}]},
        notes=["</ul><script>"],
    )


def small() -> Report:
    """Two layers, one gradient, two steps and a NaN: the example of docs/report.md."""
    return Report(
        "two layers",
        "torch",
        ["keras"],
        "float64",
        images=(1, 3, 8, 8),
        layers=[
            Point("conv1", (1, 4, 8, 8), {"keras": 2.5e-16}, LIMIT, 2e-16, {"keras": 2.5e-16}),
            Point("bn1", (1, 4, 8, 8), {"keras": 3e-06}, LIMIT, 2e-16, {"keras": 3e-06}),
        ],
        gradients=[Point("conv1.weight", (4, 3, 3, 3), {"keras": math.nan}, 1e-10)],
        training=Training(
            learning_rates=[0.1, 0.1],
            losses={"torch": [2.25, 2.0], "keras": [2.25, 2.5]},
            errors={"keras": {"loss": [1e-06, 0.25]}},
            worst={"keras": {"loss": "loss"}},
            ulp=[1e-16, 4e-16],
            limit=1e-09,
            dtype="float64",
            checked_steps=2,
        ),
        histogram=Histogram("bn1", "keras", [-7.0, -6.0, -5.0], [200, 50], 6),
        environment={"versions": {"torch": "2.13.0", "keras": "3.15.1"}},
        notes=["keras: bn1 has epsilon 0.001, the reference 1e-05."],
        coverage={
            "keras": {
                "reference": Coverage((2, 4), (0, 1), (3, 5), (116, 156), (0, 0), ["output"], ["aux.fc"]),
                "candidate": Coverage((2, 2), (1, 1), (3, 3), (116, 116), (0, 0)),
            }
        },
        pairing={"keras": {"conv1": ("conv2d", "equal weights")}},
    )
