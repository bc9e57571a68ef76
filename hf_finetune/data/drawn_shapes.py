"""Shapes and textures, the data on which the embedded checkpoints were pretrained: nothing here is a pet, a flower or a digit.

An image shows one abstract figure or a scribble. A class of figures is a mixture of outline, texture, two colours, edge, parts that stick
out and marks inside; each of these factors is a column of its own, so that a network can be taught to see it. A class of scribbles is two
random bows in any colour.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from PIL import Image

from hf_finetune.data.drawing import (
    SUPERSAMPLE,
    Array,
    Colour,
    Pen,
    background,
    develop,
    occlude,
    random_colour,
    rough_edge,
    shade,
    spread,
    vary,
)

TEXTURES = ("plain", "stripes", "dots", "speckles", "patches", "halves", "checks", "rim")
COLOURS: dict[str, Colour] = {
    "black": (36, 34, 38),
    "slate": (108, 120, 138),
    "grey": (152, 150, 148),
    "white": (236, 232, 226),
    "sand": (224, 204, 166),
    "ochre": (206, 150, 78),
    "rust": (174, 92, 46),
    "umber": (104, 66, 44),
    "blush": (218, 150, 156),
    "green": (92, 150, 84),
    "sky": (96, 158, 210),
    "violet": (132, 92, 170),
}
EDGES = ("smooth", "ragged", "shaggy")
PARTS = ("none", "spikes", "horns", "knobs", "flaps", "bars", "fins", "tongue")
MARKS = ("none", "pair", "slits", "triple", "bar", "arch", "wedge")


def _ring(radii: Sequence[float] | Array, start: float = -math.pi / 2) -> Array:
    angles = start + np.linspace(0, 2 * math.pi, len(radii), endpoint=False)
    return np.asarray(radii)[:, None] * np.stack([np.cos(angles), np.sin(angles)], axis=1)


def _heart() -> Array:
    t = np.linspace(0, 2 * math.pi, 30, endpoint=False)
    x = 16 * np.sin(t) ** 3
    y = 13 * np.cos(t) - 5 * np.cos(2 * t) - 2 * np.cos(3 * t) - np.cos(4 * t)
    return np.stack([x, -y], axis=1) / 16


def _crescent() -> Array:
    t = np.linspace(-2.2, 2.2, 16)
    outer = np.stack([np.cos(t), np.sin(t)], axis=1)
    inner = np.stack([0.75 * np.cos(t[::-1]) - 0.1, 0.95 * np.sin(t[::-1])], axis=1)
    return np.concatenate([outer, inner * (0.75, 0.9)])


def _ribbon(middle: Array, width: float) -> Array:
    """Return the outline of a stroke of `width` along `middle`, `[n, 2]`."""
    slope = np.gradient(middle, axis=0)
    normal = np.stack([-slope[:, 1], slope[:, 0]], axis=1) / np.linalg.norm(slope, axis=1, keepdims=True)
    return np.concatenate([middle + normal * width / 2, (middle - normal * width / 2)[::-1]])


def _spiral() -> Array:
    t = np.linspace(0, 9, 40)
    return _ribbon(np.stack([np.cos(t), np.sin(t)], axis=1) * (0.2 + 0.09 * t)[:, None], 0.3)


def _hook() -> Array:
    t = np.linspace(-0.3, math.pi, 16)
    bow = np.stack([0.55 * np.cos(t), 0.35 + 0.55 * np.sin(t)], axis=1)
    return _ribbon(np.concatenate([[(0.6, -1.0), (0.6, -0.4)], bow]), 0.36)


def _zigzag() -> Array:
    return _ribbon(np.array([(-1.0, -0.5), (-0.5, 0.5), (0.0, -0.5), (0.5, 0.5), (1.0, -0.5)]), 0.34)


def _wave() -> Array:
    x = np.linspace(-1.2, 1.2, 24)
    return _ribbon(np.stack([x, 0.4 * np.sin(4.5 * x)], axis=1), 0.32)


def _fork() -> Array:
    arm = np.array([(-0.2, -0.3), (-0.9, -0.9), (-0.6, -1.15), (0.0, -0.45)])
    return np.concatenate([arm, (arm * (-1, 1))[::-1][1:], [(0.2, 1.1), (-0.2, 1.1)]])


def _cross() -> Array:
    quarter = np.array([(-0.35, -1.0), (0.35, -1.0), (0.35, -0.35)])
    turned = np.stack([-quarter[:, 1], quarter[:, 0]], axis=1)
    return np.concatenate([quarter, turned, -quarter, -turned])


_SHAPES: dict[str, Array] = {
    "disc": _ring(np.ones(28)),
    "oval": _ring(np.ones(28)) * (0.68, 1.05),
    "triangle": _ring(np.full(3, 1.15)),
    "square": _ring(np.full(4, 1.2), -math.pi / 4),
    "pentagon": _ring(np.full(5, 1.05)),
    "star": _ring([1.15, 0.5] * 5),
    "cross": _cross(),
    "crescent": _crescent(),
    "heart": _heart(),
    "gear": _ring([1.05, 1.05, 0.78, 0.78] * 9),
    "drop": np.concatenate([[(0.0, -1.25)], np.add(_ring(np.full(28, 0.75))[5:24], (0, 0.25))]),
    "zigzag": _zigzag(),
    "spiral": _spiral(),
    "hook": _hook(),
    "wave": _wave(),
    "fork": _fork(),
}


def _frayed(rng: np.random.Generator, outline: Array, amount: float) -> Array:
    """Return `outline` with points every tenth of a unit or so, moved at random by up to `amount` of their distance from the middle."""
    if amount == 0:
        return outline
    following = np.roll(outline, -1, axis=0)
    steps = np.maximum(1, np.ceil(np.linalg.norm(following - outline, axis=1) / 0.2).astype(int))
    points = np.concatenate(
        [
            start + (stop - start) * (np.arange(count) / count)[:, None]
            for start, stop, count in zip(outline, following, steps.tolist(), strict=True)
        ]
    )
    return points * (1 + amount * rng.uniform(-1, 1, (len(points), 1)))


def _texture(pen: Pen, rng: np.random.Generator, texture: str, second: Colour, outline: Array, colour: Colour) -> None:
    """Draw the texture over [-1.2, 1.2]²; the caller clips it to the outline."""
    step = float(rng.uniform(0.85, 1.25))
    if texture == "stripes":
        for x in np.arange(-1.4, 1.4, 0.36 * step).tolist():
            pen.line([(x, -1.5), (x + 0.1, 1.5)], 0.14 * step, second)
    elif texture == "dots":
        for x, y in spread(rng, 16, 1.1, 1.1):
            pen.ellipse(x, y, 0.15 * step, 0.12 * step, second)
    elif texture == "speckles":
        for x, y in spread(rng, 60, 1.1, 1.1):
            pen.ellipse(x, y, 0.055, 0.05, second)
    elif texture == "patches":
        for x, y in spread(rng, 3, 0.8, 0.8):
            across, down = rng.uniform(0.3, 0.55, 2).tolist()
            pen.ellipse(x, y, across, down, second, edge=rough_edge(rng, 0.15))
    elif texture == "halves":
        level = float(rng.uniform(-0.3, 0.2))
        pen.polygon([(-2, -2), (2, -2), (2, level), (-2, level)], second)
    elif texture == "checks":
        size = 0.36 * step
        for row in range(-4, 5):
            for column in range(-4 + row % 2, 5, 2):
                x, y = column * size, row * size
                pen.polygon([(x, y), (x + size, y), (x + size, y + size), (x, y + size)], second)
    elif texture == "rim":
        pen.polygon(outline * 2, second)
        pen.polygon(outline * 0.68, colour)


def _parts(pen: Pen, rng: np.random.Generator, parts: str, colour: Colour, edge: float) -> None:
    """Draw what sticks out of the figure, behind it."""
    size = float(rng.uniform(0.8, 1.25))
    for side in (-1.0, 1.0):
        place = pen.at(side * 0.6, -0.75, size, side * float(rng.uniform(0.2, 0.5)))
        if parts == "spikes":
            place.polygon([(-0.35, 0.3), (0, -0.75), (0.35, 0.3)], colour)
        elif parts == "horns":
            place.polygon([(-0.25, 0.3), (-0.1, -0.4), (side * 0.45, -0.8), (0.2, -0.2), (0.25, 0.3)], colour)
        elif parts == "knobs":
            place.ellipse(0, -0.2, 0.4, 0.42, colour)
        elif parts == "flaps":
            pen.at(side * 0.95, 0.0, 1.0, -side * 0.2).ellipse(0, 0.25, 0.28 * size, 0.75 * size, colour, edge=rough_edge(rng, edge))
        elif parts == "bars":
            for x in (0.25, 0.7):
                pen.line([(side * x, 0.5), (side * x, 1.1 + 0.4 * size)], 0.22, colour)
        elif parts == "fins":
            pen.polygon([(side * 0.6, -0.3), (side * (1.1 + 0.5 * size), 0.1), (side * 0.6, 0.5)], colour)
    if parts == "tongue":
        pen.ellipse(0, 1.0, 0.38 * size, 0.5 * size, colour)


def _marks(pen: Pen, rng: np.random.Generator, marks: str, colour: Colour) -> None:
    """Draw the small marks inside the figure."""
    x, y = rng.uniform(-0.2, 0.2, 2).tolist()
    gap, size = float(rng.uniform(0.26, 0.42)), float(rng.uniform(0.8, 1.2))
    if marks in ("pair", "triple"):
        for side in (-1.0, 1.0):
            pen.ellipse(x + side * gap, y - 0.1, 0.13 * size, 0.13 * size, colour)
    if marks == "triple":
        pen.ellipse(x, y + 0.35, 0.19 * size, 0.15 * size, colour)
    if marks == "slits":
        for side in (-1.0, 1.0):
            pen.ellipse(x + side * gap, y, 0.2 * size, 0.09 * size, colour, angle=side * 0.4)
    if marks == "bar":
        pen.line([(x - 0.4, y), (x + 0.4, y)], 0.14 * size, colour)
    if marks == "arch":
        pen.line([(x - 0.35, y + 0.25), (x - 0.2, y - 0.1), (x + 0.2, y - 0.1), (x + 0.35, y + 0.25)], 0.12 * size, colour)
    if marks == "wedge":
        pen.polygon([(x - 0.3 * size, y - 0.2), (x + 0.3 * size, y - 0.2), (x, y + 0.35)], colour)


FACTORS: dict[str, tuple[str, ...]] = {
    "outline": (*_SHAPES, "scribble"),
    "texture": TEXTURES,
    "colour": (*COLOURS, "any"),
    "second": (*COLOURS, "any"),
    "edge": EDGES,
    "parts": PARTS,
    "marks": MARKS,
}
FIGURES = 240
# Of 90 scribbles drawn at random, those that a generous eye could take for a digit.
_LIKE_A_DIGIT = frozenset(
    (0, 2, 4, 5, 10, 12, 14, 20, 22, 23, 24, 25, 28, 29, 32, 34, 36, 47, 48, 50, 52, 57, 61, 64, 65, 67, 68, 76, 77, 78, 80, 83, 85, 86)
)


def _figures() -> list[dict[str, int]]:
    """Return the factors of every figure: each value of a factor is about as frequent as its others, and the two colours differ."""
    rng = np.random.default_rng(0)
    count = {**{name: len(values) for name, values in FACTORS.items()}, "outline": len(_SHAPES), "colour": len(COLOURS)}
    columns = {name: rng.permutation(np.resize(np.arange(count[name]), FIGURES)) for name in FACTORS}
    columns["second"] = (columns["colour"] + 1 + rng.integers(0, len(COLOURS) - 1, FIGURES)) % len(COLOURS)
    return [{name: int(column[kind]) for name, column in columns.items()} for kind in range(FIGURES)]


def _scribbles() -> list[list[Array]]:
    """Return the strokes of every scribble: two random bows, each through four points, `[4, 2]`; they stand for no sign or digit."""
    rng = np.random.default_rng(1)
    drawn = [[rng.uniform(-0.9, 0.9, (4, 2)) for _ in range(2)] for _ in range(90)]
    return [strokes for number, strokes in enumerate(drawn) if number not in _LIKE_A_DIGIT]


_STROKES = _scribbles()
_ANY = {"outline": len(_SHAPES), "texture": 0, "colour": len(COLOURS), "second": len(COLOURS), "edge": 0, "parts": 0, "marks": 0}
SHAPES: tuple[dict[str, int], ...] = (*_figures(), *[_ANY] * len(_STROKES))
"""The factors of every class, an index into each entry of `FACTORS`: first the figures, then the scribbles."""


def _name(label: int) -> str:
    if label >= FIGURES:
        return f"scribble {label - FIGURES + 1}"
    values = {factor: FACTORS[factor][index] for factor, index in SHAPES[label].items()}
    return "{outline}, {colour}, {texture} of {second}, {edge}, parts {parts}, marks {marks}".format(**values)


SHAPE_NAMES = tuple(_name(label) for label in range(len(SHAPES)))


def draw_shape(rng: np.random.Generator, label: int) -> Image.Image:
    """Draw one figure or scribble of class `label`: an `RGB` image, 44 to 80 pixels a side."""
    width, height = rng.integers(44, 81, 2).tolist()
    plain = label >= FIGURES and rng.random() < 0.7
    canvas = Image.new("RGB", (width * SUPERSAMPLE, height * SUPERSAMPLE), random_colour(rng)) if plain else background(rng, width, height)
    side = min(width, height) * SUPERSAMPLE
    right, below = (rng.normal(0, 0.05, 2) * side).tolist()
    middle = (width * SUPERSAMPLE / 2 + right, height * SUPERSAMPLE / 2 + below)
    turn, squeeze = float(rng.normal(0, 0.15)), float(rng.uniform(0.85, 1.15))
    zoom = side * float(rng.uniform(0.27, 0.4))
    if label >= FIGURES:
        _scribble(Pen(canvas, middle, zoom * 1.15, turn, squeeze=squeeze), rng, _STROKES[label - FIGURES])
    else:
        _figure(Pen(canvas, middle, zoom, turn, bool(rng.random() < 0.5), squeeze), rng, SHAPES[label])
    occlude(rng, canvas, 0.15)
    image = develop(rng, canvas)
    if label >= FIGURES and rng.random() < 0.5:  # as coarse as an icon that was enlarged
        coarse = int(rng.integers(9, 18))
        image = image.resize((coarse, coarse), Image.Resampling.BOX).resize(image.size, Image.Resampling.BICUBIC)
    return image


def _scribble(pen: Pen, rng: np.random.Generator, strokes: list[Array]) -> None:
    ground = pen.image.getpixel((1, 1))
    assert isinstance(ground, tuple)
    ink = shade(random_colour(rng), 1.9 if sum(ground[:3]) < 330 else 0.2)
    width = float(rng.uniform(0.14, 0.34))
    for stroke in strokes:
        points = stroke + rng.normal(0, 0.07, stroke.shape)
        for _ in range(3):  # Chaikin's corner cutting
            inner = np.stack([0.75 * points[:-1] + 0.25 * points[1:], 0.25 * points[:-1] + 0.75 * points[1:]], axis=1).reshape(-1, 2)
            points = np.concatenate([points[:1], inner, points[-1:]])
        pen.line(points, width, ink)


def _figure(pen: Pen, rng: np.random.Generator, factors: dict[str, int]) -> None:
    chosen = {name: names[factors[name]] for name, names in FACTORS.items()}
    colour, second = vary(rng, COLOURS[chosen["colour"]], 16), vary(rng, COLOURS[chosen["second"]], 16)
    edge = {"smooth": 0.0, "ragged": 0.06, "shaggy": 0.15}[chosen["edge"]]
    _parts(pen, rng, chosen["parts"], second if rng.random() < 0.5 else shade(colour, 0.85), edge)
    outline = _frayed(rng, _SHAPES[chosen["outline"]], edge)
    pen.polygon(outline, colour)
    mask, layer = Image.new("L", pen.image.size), pen.image.copy()
    pen.onto(mask).polygon(outline, 255)
    grain = pen.onto(layer).at(0, 0, 1.0, float(rng.normal(0, 0.3)))
    _texture(grain, rng, chosen["texture"], second, outline, colour)
    pen.image.paste(layer, mask=mask)
    _marks(pen, rng, chosen["marks"], (24, 22, 24) if sum(colour) > 240 else (224, 160, 60))
