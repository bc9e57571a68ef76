"""How one drawn pet looks: a table of 37 breeds, and the drawing of one animal of a breed.

No attribute gives a breed away: ears, head, muzzle, fur, build, coat colours and markings are each shared by several breeds, and pose,
light, background and individual variation act on all of them.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from PIL import Image

from hf_finetune.data.drawing import (
    SUPERSAMPLE,
    Array,
    Colour,
    Pen,
    background,
    develop,
    mix,
    occlude,
    pick,
    rough_edge,
    shade,
    spread,
    vary,
)

COATS: dict[str, Colour] = {
    "black": (38, 35, 38),
    "blue": (112, 122, 138),
    "grey": (150, 148, 146),
    "silver": (190, 190, 186),
    "white": (236, 232, 224),
    "cream": (226, 208, 172),
    "fawn": (206, 168, 118),
    "gold": (206, 146, 70),
    "red": (176, 94, 44),
    "liver": (104, 62, 40),
    "brown": (134, 92, 58),
    "pink": (222, 178, 162),
}


@dataclass(frozen=True)
class Breed:
    """What the animals of one breed have in common.

    Attributes:
        name: Name of the class, as in the real set.
        coats: Coat colours, names in `COATS`, parted by `|`; each animal has one.
        marks: Markings, parted by `+`; see `_mark_head` and `_mark_body`.
        second: Colour of the markings, a name in `COATS`.
        ears: `prick`, `bat`, `tuft`, `fold`, `drop` or `long`.
        ear: Size of the ears, 1 being usual.
        face: Width of the head over its height.
        muzzle: Length of the muzzle, 0 flat to 1 long.
        fur: Raggedness of the outline, 0 (smooth) to 1 (shaggy).
        legs: Length of the legs, 1 being usual.
        girth: Thickness of body and neck, 1 being usual.
        eyes: Colour of the eyes: `dark`, `amber`, `green` or `blue`.
    """

    name: str
    coats: str
    marks: str = ""
    second: str = "white"
    ears: str = "drop"
    ear: float = 1.0
    face: float = 1.0
    muzzle: float = 0.6
    fur: float = 0.1
    legs: float = 1.0
    girth: float = 1.0
    eyes: str = "dark"
    cat: bool = False


def _cat(name: str, coats: str, marks: str = "", second: str = "black", eyes: str = "amber", **build: float | str) -> Breed:
    shape: dict[str, float | str] = {"ears": "prick", "muzzle": 0.1, "face": 1.1, "girth": 0.9, **build}
    return Breed(name, coats, marks, second, eyes=eyes, cat=True, **shape)  # type: ignore[arg-type]


BREEDS: tuple[Breed, ...] = (
    _cat("abyssinian", "red|fawn", "ticks", "brown", "green", ear=1.25, face=1.0),
    Breed("american_bulldog", "white", "patches", "brown", "drop", 0.7, 1.15, 0.35, 0.05, 1.0, 1.3),
    Breed("american_pit_bull_terrier", "blue|brown", "chest", "white", "fold", 0.8, 1.1, 0.5, 0.05, 1.0, 1.15),
    Breed("basset_hound", "white|fawn", "saddle", "brown", "long", 1.4, 0.85, 0.8, 0.08, 0.45, 1.15),
    Breed("beagle", "white", "saddle+mask", "brown", "long", 0.9, 0.95, 0.6, 0.06, 0.85, 1.0),
    _cat("bengal", "gold|fawn", "spots", "black", "green", ear=0.85),
    _cat("birman", "cream", "points+boots", "liver", "blue", fur=0.7),
    _cat("bombay", "black", "", "black", "amber", face=1.15),
    Breed("boxer", "fawn|red", "dark_muzzle+chest", "black", "fold", 0.85, 1.0, 0.35, 0.05, 1.15, 1.1),
    _cat("british_shorthair", "blue|grey", "", "grey", "amber", ear=0.75, face=1.3, girth=1.2, fur=0.25),
    Breed("chihuahua", "fawn|cream", "blaze", "white", "bat", 1.3, 1.1, 0.35, 0.1, 0.8, 0.8),
    _cat("egyptian_mau", "silver|grey", "spots+tabby", "black", "green", ear=1.0, face=1.0),
    Breed("english_cocker_spaniel", "gold|liver", "", "white", "long", 1.2, 0.95, 0.6, 0.6, 0.8, 1.0),
    Breed("english_setter", "white", "ticks+spots", "brown", "long", 1.1, 0.85, 0.85, 0.6, 1.1, 0.95),
    Breed("german_shorthaired", "white|grey", "ticks+mask", "liver", "long", 0.9, 0.85, 0.8, 0.05, 1.15, 0.95),
    Breed("great_pyrenees", "white|cream", "", "cream", "drop", 0.9, 1.05, 0.6, 0.75, 1.0, 1.25),
    Breed("havanese", "cream", "patches+beard", "grey", "drop", 1.2, 1.1, 0.35, 1.0, 0.7, 1.0),
    Breed("japanese_chin", "white", "mask", "black", "drop", 1.2, 1.2, 0.1, 0.8, 0.75, 0.9),
    Breed("keeshond", "grey|silver", "dark_muzzle+saddle", "black", "prick", 0.7, 1.15, 0.5, 0.9, 0.9, 1.15),
    Breed("leonberger", "gold|red", "dark_muzzle", "black", "drop", 1.0, 1.05, 0.65, 0.8, 1.05, 1.25),
    _cat("maine_coon", "brown|grey", "tabby", "black", "green", ears="tuft", ear=1.2, fur=0.9, muzzle=0.3),
    Breed("miniature_pinscher", "black|liver", "tan", "gold", "prick", 1.2, 0.85, 0.7, 0.04, 1.1, 0.75),
    Breed("newfoundland", "black", "", "black", "drop", 1.0, 1.1, 0.6, 0.8, 0.95, 1.35),
    _cat("persian", "white|cream", "", "grey", "amber", ear=0.6, face=1.35, fur=1.0, muzzle=0.0, girth=1.1),
    Breed("pomeranian", "gold|red", "", "white", "prick", 0.55, 1.15, 0.4, 1.0, 0.6, 1.1),
    Breed("pug", "fawn|cream", "dark_muzzle+dark_ears", "black", "fold", 0.75, 1.25, 0.15, 0.04, 0.75, 1.2),
    _cat("ragdoll", "cream|white", "points+blaze", "grey", "blue", fur=0.75, face=1.2),
    _cat("russian_blue", "blue", "", "grey", "green", ear=1.15, face=0.95, fur=0.1),
    Breed("saint_bernard", "white", "patches+dark_ears+blaze", "red", "drop", 1.0, 1.1, 0.55, 0.45, 1.05, 1.35),
    Breed("samoyed", "white", "", "cream", "prick", 0.75, 1.15, 0.55, 0.95, 0.95, 1.15),
    Breed("scottish_terrier", "black|grey", "beard", "black", "prick", 0.95, 0.8, 0.85, 0.8, 0.45, 1.05),
    Breed("shiba_inu", "red|gold", "pale_muzzle+chest", "white", "prick", 0.85, 1.15, 0.55, 0.25, 0.95, 1.0),
    _cat("siamese", "cream|fawn", "points", "liver", "blue", ear=1.35, face=0.9, muzzle=0.25, girth=0.75),
    _cat("sphynx", "pink", "wrinkles", "brown", "blue", ear=1.55, face=0.95, fur=0.0, girth=0.75),
    Breed("staffordshire_bull_terrier", "black|blue|brown", "blaze+chest", "white", "fold", 0.8, 1.25, 0.4, 0.04, 0.8, 1.25),
    Breed("wheaten_terrier", "fawn|cream", "beard", "gold", "drop", 0.8, 0.9, 0.65, 0.9, 1.05, 1.0),
    Breed("yorkshire_terrier", "gold|fawn", "saddle+beard", "blue", "prick", 0.9, 0.95, 0.4, 0.95, 0.55, 0.85),
)

_EYES: dict[str, Colour] = {"dark": (62, 40, 28), "amber": (214, 154, 44), "green": (124, 172, 76), "blue": (92, 160, 214)}


@dataclass
class _Animal:
    """One animal: its breed's figures with individual variation, and its own colours."""

    breed: Breed
    coat: Colour
    second: Colour
    marks: frozenset[str]
    fur: float
    ear: float
    face: float
    muzzle: float
    yaw: float

    def edge(self, rng: np.random.Generator) -> Array:
        return rough_edge(rng, 0.02 + 0.13 * self.fur)


def _animal(rng: np.random.Generator, breed: Breed) -> _Animal:
    coat, second = COATS[pick(rng, breed.coats.split("|"))], COATS[breed.second]
    ear, face, muzzle = rng.normal(1.0, 0.05, 3).tolist()
    return _Animal(
        breed=breed,
        coat=shade(vary(rng, coat, 12), float(rng.uniform(0.9, 1.06))),
        second=vary(rng, second, 12),
        marks=frozenset(mark for mark in breed.marks.split("+") if mark and rng.random() < 0.97),
        fur=float(np.clip(breed.fur + rng.normal(0, 0.06), 0, 1)),
        ear=breed.ear * ear,
        face=breed.face * face,
        muzzle=max(0.0, breed.muzzle * muzzle),
        yaw=float(rng.uniform(-0.28, 0.28)),
    )


def _ears(pen: Pen, rng: np.random.Generator, animal: _Animal) -> None:
    size, kind = animal.ear, animal.breed.ears
    dark = "points" in animal.marks or "dark_ears" in animal.marks or ("saddle" in animal.marks and kind == "prick")
    colour = animal.second if dark or "mask" in animal.marks else shade(animal.coat, 0.86)
    inner = mix(colour, (222, 156, 146), 0.5)
    for side in (-1.0, 1.0):
        x = side * animal.face * 0.62 + animal.yaw * 0.3
        turn = side * (0.3 + float(rng.normal(0, 0.08)))
        ear = pen.at(x, -0.55, size, turn)
        if kind in ("prick", "bat", "tuft"):
            wide = 0.5 if kind == "bat" else 0.36
            tall = 1.0 if kind == "tuft" else 0.82
            ear.polygon([(-wide, 0.25), (-wide * 0.75, -0.35), (0, -tall), (wide * 0.75, -0.35), (wide, 0.25)], colour)
            ear.polygon([(-wide * 0.5, 0.2), (0, -tall * 0.7), (wide * 0.5, 0.2)], inner)
        elif kind == "fold":
            ear.polygon([(-0.36, 0.25), (-0.2, -0.45), (0.3, -0.35), (0.36, 0.25)], colour)
            ear.polygon([(-0.25, -0.42), (0.34, -0.34), (0.14 + side * 0.28, 0.16)], shade(colour, 0.75))
        else:
            drop = 1.35 if kind == "long" else 0.8
            middle = pen.at(side * (animal.face * 0.86) + animal.yaw * 0.2, -0.3, 1.0, side * -0.16)
            middle.ellipse(0, drop * 0.42 * size, 0.3 * (0.7 + 0.3 * size), drop * 0.62 * size, shade(colour, 0.9), edge=animal.edge(rng))


def _mark_head(pen: Pen, rng: np.random.Generator, animal: _Animal) -> None:
    """Draw the markings of the face; the caller clips them to the head."""
    marks, second, yaw = animal.marks, animal.second, animal.yaw
    if "mask" in marks:
        for side in (-1.0, 1.0):
            pen.ellipse(side * 0.62 + yaw * 0.5, -0.3, 0.48, 0.75, second)
    if "points" in marks:
        pen.ellipse(yaw, 0.25, 0.55, 0.62, mix(animal.coat, second, 0.8))
    if "saddle" in marks:
        pen.ellipse(0, -0.95, 0.9, 0.5, second)
    if "patches" in marks:
        for x, y in spread(rng, 2, 0.8, 0.8):
            pen.ellipse(x, y, float(rng.uniform(0.3, 0.55)), float(rng.uniform(0.3, 0.55)), second)
    if "tabby" in marks:
        for x in (-0.3, 0.0, 0.3):
            pen.line([(x * 0.6 + yaw, -0.45), (x + yaw * 0.5, -1.0)], 0.09, second)
        for side in (-1.0, 1.0):
            for y in (0.1, 0.35):
                pen.line([(side * 0.55, y), (side * 1.3, y - 0.12)], 0.08, second)
    if "wrinkles" in marks:
        for y in (-0.75, -0.58, -0.42):
            pen.line([(-0.45 + yaw, y), (yaw, y + 0.08), (0.45 + yaw, y)], 0.05, shade(animal.coat, 0.72))
    _dots(pen, rng, animal, 1.0, 0.9)
    if "blaze" in marks:
        white = COATS["white"]
        pen.polygon([(-0.1 + yaw, -1.1), (0.1 + yaw, -1.1), (0.34 + yaw, 0.5), (-0.34 + yaw, 0.5)], white)
    if "tan" in marks:
        for side in (-1.0, 1.0):
            pen.ellipse(side * 0.36 + yaw, -0.42, 0.14, 0.1, second)


def _dots(pen: Pen, rng: np.random.Generator, animal: _Animal, across: float, down: float) -> None:
    if "spots" in animal.marks:
        for x, y in spread(rng, 14, across, down):
            pen.ellipse(x, y, 0.13, 0.1, animal.second)
    if "ticks" in animal.marks:
        for x, y in spread(rng, 34, across, down):
            pen.ellipse(x, y, 0.055, 0.045, animal.second)


def _face(pen: Pen, rng: np.random.Generator, animal: _Animal) -> None:
    """Draw muzzle, nose and eyes."""
    breed, marks, yaw, length = animal.breed, animal.marks, animal.yaw, animal.muzzle
    colour = shade(animal.coat, 1.1)
    if "dark_muzzle" in marks or "points" in marks:
        colour = animal.second
    elif {"pale_muzzle", "blaze", "mask", "patches"} & marks:
        colour = COATS["white"]
    elif {"tan", "beard"} & marks:
        colour = mix(animal.second, animal.coat, 0.3)
    nose_y = 0.28 + 0.32 * length
    if breed.cat:
        for side in (-1.0, 1.0):
            pen.ellipse(side * 0.19 + yaw * 1.2, 0.5 + length * 0.2, 0.25, 0.2, colour)
        nose = mix((206, 122, 120), (60, 44, 46), float(rng.random() < 0.4))
        pen.polygon([(-0.13 + yaw * 1.2, nose_y), (0.13 + yaw * 1.2, nose_y), (yaw * 1.2, nose_y + 0.15)], nose)
    else:
        width = 0.52 - 0.16 * length
        shift = yaw * (1.0 + length)
        if "beard" in marks:
            pen.ellipse(shift, 0.75, width + 0.2, 0.55, colour, edge=rough_edge(rng, 0.16))
        pen.ellipse(shift, 0.42 + 0.12 * length, width, 0.36 + 0.3 * length, colour, edge=animal.edge(rng))
        pen.ellipse(shift, nose_y, 0.19, 0.14, (30, 26, 28))
        pen.line([(shift, nose_y + 0.1), (shift, nose_y + 0.3)], 0.05, (44, 32, 34))
    iris = vary(rng, _EYES[breed.eyes], 14)
    size = 0.19 if breed.cat else 0.145
    for side in (-1.0, 1.0):
        x, y = side * 0.4 * animal.face + yaw * 0.9, -0.16
        pen.ellipse(x, y, size, size * (0.85 if breed.cat else 1.0), iris, angle=side * 0.25)
        pen.ellipse(x, y, size * (0.35 if breed.cat else 0.6), size * 0.75, (16, 14, 16))


def _head(pen: Pen, rng: np.random.Generator, animal: _Animal) -> None:
    """Draw the head, its half height being one unit, with its middle at the pen's origin."""
    hangs = animal.breed.ears in ("drop", "long")
    if not hangs:
        _ears(pen, rng, animal)
    edge = animal.edge(rng)
    across = animal.face * 0.95
    pen.ellipse(0, 0, across, 0.95, animal.coat, edge=edge)
    mask = Image.new("L", pen.image.size)
    pen.onto(mask).ellipse(0, 0, across, 0.95, 255, edge=edge)
    _clipped(pen, mask, lambda layer: _mark_head(layer, rng, animal))
    if hangs:
        _ears(pen, rng, animal)
    _face(pen, rng, animal)


def _clipped(pen: Pen, mask: Image.Image, draw: Callable[[Pen], None]) -> None:
    layer = pen.image.copy()
    draw(pen.onto(layer))
    pen.image.paste(layer, mask=mask)


def _mark_body(pen: Pen, rng: np.random.Generator, animal: _Animal) -> None:
    """Draw the markings of the trunk, which reaches over [-1.4, 1.4] × [-0.7, 0.7]; the caller clips them to it."""
    marks, second = animal.marks, animal.second
    if "saddle" in marks:
        pen.ellipse(-0.1, -0.55, 1.15, 0.75, second)
    if "patches" in marks or "mask" in marks:
        for x, y in spread(rng, 3, 1.2, 0.6):
            pen.ellipse(x, y, float(rng.uniform(0.25, 0.5)), float(rng.uniform(0.2, 0.45)), second)
    if "tabby" in marks:
        for x in np.linspace(-1.2, 1.2, 8).tolist():
            pen.line([(x, -0.9), (x + 0.12, 0.5)], 0.1, second)
    if "wrinkles" in marks:
        for x in (0.6, 0.8, 1.0):
            pen.line([(x, -0.7), (x - 0.1, 0.5)], 0.06, shade(animal.coat, 0.72))
    _dots(pen, rng, animal, 1.35, 0.7)
    if "chest" in marks or "blaze" in marks:
        pen.ellipse(1.25, 0.35, 0.5, 0.55, COATS["white"])
    if "tan" in marks:
        pen.ellipse(1.2, 0.45, 0.4, 0.3, second)


def _portrait(pen: Pen, rng: np.random.Generator, animal: _Animal) -> None:
    """Head and shoulders from the front."""
    across, edge = 1.05 * animal.breed.girth, animal.edge(rng)
    pen.ellipse(-animal.yaw, 1.75, across, 1.2, shade(animal.coat, 0.92), edge=edge)
    mask = Image.new("L", pen.image.size)
    pen.onto(mask).ellipse(-animal.yaw, 1.75, across, 1.2, 255, edge=edge)
    _clipped(pen, mask, lambda layer: _mark_body(layer.at(-animal.yaw, 1.6, 0.8, math.pi / 2), rng, animal))
    _head(pen, rng, animal)


def _whole(pen: Pen, rng: np.random.Generator, animal: _Animal) -> None:
    """The whole animal from the side, its head turned to the viewer."""
    breed, coat = animal.breed, animal.coat
    girth, leg = 0.62 * breed.girth, 0.95 * breed.legs * float(rng.uniform(0.92, 1.08))
    dark_legs = "points" in animal.marks
    foot = COATS["white"] if {"boots", "chest", "patches"} & animal.marks else animal.second if {"points", "tan"} & animal.marks else coat
    for x, tone in ((-0.85, 0.78), (0.95, 0.78), (-1.1, 1.0), (0.75, 1.0)):
        swing = float(rng.normal(0, 0.1))
        colour = shade(mix(coat, animal.second, 0.6) if dark_legs else coat, tone)
        bottom = 0.3 + leg
        pen.line([(x, 0.2), (x + swing, bottom)], 0.3 * breed.girth, colour)
        pen.ellipse(x + swing + 0.05, bottom, 0.2 * breed.girth, 0.13, shade(foot, tone))
    tail = float(rng.uniform(-0.5, 0.5))
    colour = animal.second if {"points", "saddle"} & animal.marks else shade(coat, 0.85)
    pen.line([(-1.2, -0.25), (-1.65, -0.5), (-1.8, -1.1 + tail)], 0.14 + 0.3 * animal.fur, colour)
    edge = animal.edge(rng)
    pen.ellipse(0, 0, 1.4, girth, coat, edge=edge)
    mask = Image.new("L", pen.image.size)
    pen.onto(mask).ellipse(0, 0, 1.4, girth, 255, edge=edge)
    _clipped(pen, mask, lambda layer: _mark_body(layer.at(0, 0, 1.0), rng, animal))
    pen.line([(0.95, -0.1), (1.25, -0.8)], 0.7 * breed.girth, coat)
    _head(pen.at(1.35, -0.95, 0.72, float(rng.normal(0, 0.12))), rng, animal)


def draw_pet(rng: np.random.Generator, breed: Breed) -> Image.Image:
    """Draw one animal of `breed`: an `RGB` image, 40 to 80 pixels a side, with its own pose, light and background."""
    long, ratio = int(rng.integers(52, 81)), float(rng.uniform(0.72, 1.0))
    short = max(40, round(long * ratio))
    whole = rng.random() < 0.15
    width, height = (long, short) if whole or rng.random() < 0.4 else (short, long)
    canvas = background(rng, width, height)
    animal = _animal(rng, breed)
    side = min(width, height) * SUPERSAMPLE
    zoom = side * float(rng.uniform(0.2, 0.235) if whole else rng.uniform(0.28, 0.35))
    right, below = (rng.normal(0, 0.035, 2) * side).tolist()
    middle = (width * SUPERSAMPLE / 2 + right, height * SUPERSAMPLE / 2 + below)
    turn, flip, squeeze = float(rng.normal(0, 0.1)), bool(rng.random() < 0.5), float(rng.uniform(0.94, 1.06))
    pen = Pen(canvas, middle, zoom, turn, flip, squeeze)
    if whole:
        _whole(pen.at(-0.1, 0.15), rng, animal)
    else:
        _portrait(pen.at(0, 0.05), rng, animal)
    occlude(rng, canvas, 0.08)
    return develop(rng, canvas, light=0.12, noise=4.0, tint=0.05)
