"""How one drawn flower looks: a table of 102 kinds, and the drawing of one flower of a kind.

The names are those of Oxford Flowers 102, in its order. Form, petals and colours follow the real flower roughly; many kinds share most of
them.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from PIL import Image

from hf_finetune.data.drawing import SUPERSAMPLE, Array, Colour, Pen, background, develop, mix, occlude, rough_edge, shade, spread, vary

COLOURS: dict[str, Colour] = {
    "white": (238, 236, 230),
    "cream": (240, 226, 178),
    "yellow": (240, 208, 48),
    "orange": (236, 140, 40),
    "red": (204, 42, 44),
    "crimson": (150, 26, 60),
    "pink": (238, 154, 186),
    "magenta": (208, 60, 150),
    "purple": (128, 64, 164),
    "violet": (96, 72, 190),
    "blue": (72, 104, 208),
    "lilac": (190, 162, 222),
    "green": (112, 160, 70),
    "brown": (104, 66, 40),
    "black": (44, 34, 34),
}

# name, petals, shape of a petal, colour, second colour (throat, rim or dots), centre colour, form; then the size of the centre
_TABLE = """
pink primrose|4|round|pink|white|yellow|rosette|2
hard-leaved pocket orchid|5|pointed|green|crimson|crimson|orchid|2
canterbury bells|5|round|lilac|white|cream|bells|2
sweet pea|4|ruffled|magenta|pink|white|orchid|1
english marigold|18|strap|orange|yellow|orange|rosette|3
tiger lily|6|pointed|orange|brown|brown|dotted|1
moon orchid|5|round|white|yellow|magenta|orchid|2
bird of paradise|5|strap|orange|blue|blue|fan|1
monkshood|5|round|violet|blue|black|spike|1
globe thistle|30|strap|blue|lilac|blue|ball|1
snapdragon|4|ruffled|pink|yellow|yellow|spike|1
colt's foot|26|strap|yellow|orange|yellow|rosette|2
king protea|16|pointed|pink|white|cream|rosette|5
spear thistle|28|strap|magenta|purple|green|ball|1
yellow iris|6|heart|yellow|brown|yellow|orchid|1
globe-flower|10|round|yellow|orange|yellow|double|1
purple coneflower|14|strap|magenta|pink|brown|rosette|5
peruvian lily|6|heart|pink|yellow|crimson|dotted|1
balloon flower|5|pointed|violet|lilac|white|rosette|2
giant white arum lily|1|heart|white|cream|yellow|trumpet|1
fire lily|6|pointed|red|yellow|brown|rosette|2
pincushion flower|14|ruffled|lilac|white|lilac|rosette|6
fritillary|6|pointed|crimson|purple|green|bells|1
red ginger|12|pointed|red|crimson|white|spike|1
grape hyacinth|8|round|violet|blue|white|spike|1
corn poppy|4|ruffled|red|black|black|rosette|3
prince of wales feathers|12|strap|crimson|magenta|red|spike|1
stemless gentian|5|pointed|blue|violet|green|trumpet|2
artichoke|20|pointed|purple|green|purple|ball|1
sweet william|5|ruffled|magenta|white|white|cluster|1
carnation|16|ruffled|pink|red|pink|double|1
garden phlox|5|round|magenta|pink|white|cluster|1
love in the mist|8|pointed|blue|white|green|rosette|3
mexican aster|8|ruffled|pink|magenta|yellow|rosette|3
alpine sea holly|16|strap|blue|violet|violet|rosette|5
ruby-lipped cattleya|5|ruffled|lilac|crimson|yellow|orchid|3
cape flower|6|strap|pink|magenta|white|cluster|1
great masterwort|18|pointed|white|pink|cream|rosette|5
siam tulip|6|pointed|pink|green|white|spike|2
lenten rose|5|round|crimson|green|cream|rosette|3
barbeton daisy|24|strap|red|orange|yellow|rosette|3
daffodil|6|pointed|yellow|orange|orange|trumpet|4
sword lily|6|heart|red|white|yellow|spike|1
poinsettia|9|pointed|red|crimson|yellow|rosette|2
bolero deep blue|14|ruffled|violet|purple|violet|double|1
wallflower|4|round|orange|brown|yellow|cluster|1
marigold|22|ruffled|orange|red|orange|double|1
buttercup|5|round|yellow|cream|yellow|rosette|2
oxeye daisy|20|strap|white|cream|yellow|rosette|4
common dandelion|34|strap|yellow|orange|yellow|double|1
petunia|5|ruffled|purple|white|white|trumpet|2
wild pansy|5|round|violet|yellow|black|orchid|1
primula|5|heart|pink|yellow|yellow|cluster|2
sunflower|22|pointed|yellow|orange|brown|rosette|6
pelargonium|5|round|red|crimson|white|cluster|1
bishop of llandaff|10|round|red|crimson|black|rosette|3
gaura|4|strap|white|pink|pink|rosette|1
geranium|5|heart|lilac|violet|white|rosette|2
orange dahlia|20|round|orange|yellow|orange|double|2
pink-yellow dahlia|20|pointed|pink|yellow|yellow|double|2
cautleya spicata|8|strap|yellow|crimson|crimson|spike|1
japanese anemone|6|round|pink|white|yellow|rosette|3
black-eyed susan|12|strap|yellow|orange|black|rosette|4
silverbush|5|round|white|cream|yellow|trumpet|2
californian poppy|4|round|orange|yellow|orange|trumpet|2
osteospermum|16|strap|white|violet|violet|rosette|3
spring crocus|6|pointed|lilac|purple|orange|trumpet|2
bearded iris|6|ruffled|purple|lilac|yellow|orchid|2
windflower|7|strap|blue|white|cream|rosette|2
tree poppy|6|ruffled|white|cream|yellow|rosette|4
gazania|14|pointed|orange|brown|yellow|rosette|3
azalea|5|ruffled|magenta|crimson|pink|dotted|1
water lily|16|pointed|white|pink|yellow|double|3
rose|14|round|red|crimson|crimson|double|1
thorn apple|5|pointed|white|lilac|green|trumpet|1
morning glory|5|round|blue|white|cream|trumpet|2
passion flower|10|strap|white|purple|green|fringe|3
lotus|14|heart|pink|white|yellow|double|3
toad lily|6|strap|white|purple|purple|dotted|2
anthurium|1|heart|red|crimson|yellow|trumpet|1
frangipani|5|round|cream|yellow|yellow|pinwheel|1
clematis|8|pointed|purple|magenta|cream|fringe|2
hibiscus|5|ruffled|red|crimson|yellow|trumpet|3
columbine|5|heart|blue|white|white|fringe|2
desert-rose|5|heart|magenta|white|white|trumpet|1
tree mallow|5|heart|magenta|crimson|white|pinwheel|2
magnolia|9|heart|white|pink|green|double|2
cyclamen|5|ruffled|magenta|white|crimson|fan|1
watercress|4|round|white|green|yellow|cluster|1
canna lily|5|heart|orange|red|yellow|fan|2
hippeastrum|6|pointed|red|white|green|trumpet|2
bee balm|22|strap|red|magenta|brown|fringe|3
ball moss|14|strap|green|lilac|green|ball|1
foxglove|8|round|magenta|white|crimson|bells|1
bougainvillea|3|heart|magenta|pink|white|cluster|1
camellia|18|round|pink|white|yellow|double|1
mallow|5|heart|lilac|purple|white|pinwheel|2
mexican petunia|5|ruffled|violet|lilac|white|rosette|1
bromelia|14|pointed|red|green|yellow|double|2
blanket flower|16|ruffled|red|yellow|brown|rosette|5
trumpet creeper|5|round|orange|red|red|bells|2
blackberry lily|6|strap|orange|red|yellow|dotted|1
"""


@dataclass(frozen=True)
class Flower:
    """What the flowers of one kind have in common.

    Attributes:
        name: Name of the class, as in the real set.
        petals: Number of petals, or of florets.
        shape: `round`, `pointed`, `strap`, `heart` or `ruffled`.
        colour: Colour of the petals, a name in `COLOURS`.
        second: Colour of throat, rim, dots or inner petals.
        middle: Colour of the centre.
        form: How the petals are put together; see `_FORMS`.
        centre: Radius of the centre, in tenths of the flower's.
    """

    name: str
    petals: int
    shape: str
    colour: str
    second: str
    middle: str
    form: str
    centre: float


def _flower(line: str) -> Flower:
    name, petals, shape, colour, second, middle, form, centre = line.split("|")
    return Flower(name, int(petals), shape, colour, second, middle, form, 0.1 * float(centre))


FLOWERS: tuple[Flower, ...] = tuple(_flower(line) for line in _TABLE.split("\n") if line)

# Half outlines of a petal that points up from (0, 0) to (0, -1): distance from the base, half width; mirrored by `_petal`.
_HALVES: dict[str, list[tuple[float, float]]] = {
    "round": [(0.0, 0.1), (0.3, 0.32), (0.6, 0.46), (0.85, 0.38), (0.97, 0.18)],
    "pointed": [(0.0, 0.12), (0.35, 0.36), (0.6, 0.32), (0.85, 0.14), (1.05, 0.0)],
    "strap": [(0.0, 0.12), (0.4, 0.2), (0.8, 0.2), (0.95, 0.12), (1.0, 0.04)],
    "heart": [(0.0, 0.1), (0.4, 0.4), (0.75, 0.52), (0.98, 0.32), (0.86, 0.02)],
    "ruffled": [(0.0, 0.12), (0.4, 0.4), (0.7, 0.52), (0.84, 0.4), (0.98, 0.34), (0.88, 0.16), (1.02, 0.06)],
}


def _petal(shape: str, width: float) -> Array:
    half = np.array(_HALVES[shape])
    right = np.stack([half[:, 1] * width, -half[:, 0]], axis=1)
    return np.concatenate([right, right[::-1] * (-1, 1)])


@dataclass
class _Bloom:
    """One flower: its kind with individual colours and proportions."""

    kind: Flower
    colour: Colour
    second: Colour
    middle: Colour
    outline: Array
    centre: float


def _ring(pen: Pen, rng: np.random.Generator, bloom: _Bloom, count: int, length: float, colour: Colour, start: float) -> None:
    angles = start + 2 * math.pi * np.arange(count) / count + rng.normal(0, 0.06, count)
    sizes, tones = length * rng.uniform(0.9, 1.08, count), rng.uniform(0.86, 1.1, count)
    for angle, size, tone in zip(angles.tolist(), sizes.tolist(), tones.tolist(), strict=True):
        pen.at(0, 0, size, angle).polygon(bloom.outline, shade(colour, tone))


def _disc(pen: Pen, rng: np.random.Generator, bloom: _Bloom) -> None:
    pen.ellipse(0, 0, bloom.centre, bloom.centre, bloom.middle, edge=rough_edge(rng, 0.12))
    pen.ellipse(0.02, 0.02, bloom.centre * 0.55, bloom.centre * 0.55, shade(bloom.middle, 0.75))


def _rosette(pen: Pen, rng: np.random.Generator, bloom: _Bloom) -> None:
    start = float(rng.uniform(0, 2 * math.pi))
    _ring(pen, rng, bloom, bloom.kind.petals, 1.0, bloom.colour, start)
    _ring(pen, rng, bloom, bloom.kind.petals, 0.45, mix(bloom.colour, bloom.second, 0.75), start)
    _disc(pen, rng, bloom)


def _double(pen: Pen, rng: np.random.Generator, bloom: _Bloom) -> None:
    start = float(rng.uniform(0, 2 * math.pi))
    for layer, length in enumerate((1.0, 0.75, 0.5, 0.28)):
        count = max(3, round(bloom.kind.petals * length))
        _ring(pen, rng, bloom, count, length, shade(mix(bloom.colour, bloom.second, 0.22 * layer), 1 - 0.05 * layer), start + 0.4 * layer)
    _disc(pen, rng, bloom)


def _dotted(pen: Pen, rng: np.random.Generator, bloom: _Bloom) -> None:
    _ring(pen, rng, bloom, bloom.kind.petals, 1.0, bloom.colour, float(rng.uniform(0, 2 * math.pi)))
    for x, y in spread(rng, 26, 0.6, 0.6):
        pen.ellipse(x, y, 0.05, 0.05, bloom.second)
    _disc(pen, rng, bloom)


def _fringe(pen: Pen, rng: np.random.Generator, bloom: _Bloom) -> None:
    start = float(rng.uniform(0, 2 * math.pi))
    _ring(pen, rng, bloom, bloom.kind.petals, 1.0, bloom.colour, start)
    for angle in np.linspace(0, 2 * math.pi, 26, endpoint=False).tolist():
        pen.line([(0, 0), (0.62 * math.cos(angle), 0.62 * math.sin(angle))], 0.05, bloom.second)
    _disc(pen, rng, bloom)


def _pinwheel(pen: Pen, rng: np.random.Generator, bloom: _Bloom) -> None:
    start = float(rng.uniform(0, 2 * math.pi))
    for number in range(bloom.kind.petals):
        angle = start + 2 * math.pi * number / bloom.kind.petals
        blade = pen.at(0, 0, 1.0, angle)
        blade.polygon(np.add(bloom.outline, (0.18, 0)), shade(bloom.colour, 0.95 + 0.04 * (number % 3)))
        for x in (-0.06, 0.1, 0.26):
            blade.line([(0, -0.1), (x, -0.6)], 0.05, bloom.second)
    _disc(pen, rng, bloom)


def _orchid(pen: Pen, rng: np.random.Generator, bloom: _Bloom) -> None:
    lean = float(rng.normal(0, 0.12))
    for angle, size in ((0.0, 0.9), (1.15, 1.0), (-1.15, 1.0), (2.45, 0.85), (-2.45, 0.85)):
        pen.at(0, 0, size, angle + lean).polygon(bloom.outline, shade(bloom.colour, float(rng.uniform(0.88, 1.08))))
    pen.at(0, 0.05, 0.75, math.pi + lean).polygon(_petal("heart", 0.9), bloom.second)
    _disc(pen, rng, bloom)


def _trumpet(pen: Pen, rng: np.random.Generator, bloom: _Bloom) -> None:
    pen.line([(0.1, 0.1), (0.35, 1.5)], 0.24, mix(bloom.colour, COLOURS["green"], 0.4))
    _ring(pen, rng, bloom, bloom.kind.petals, 1.0, bloom.colour, float(rng.uniform(-0.4, 0.4)))
    radius = 0.2 + bloom.centre
    pen.ellipse(0, 0, radius, radius * 0.9, bloom.second)
    pen.line([(0, 0), (0.12, -0.45)], 0.1, bloom.middle)


def _fan(pen: Pen, rng: np.random.Generator, bloom: _Bloom) -> None:
    pen.line([(0, 0.2), (-0.2, 1.5)], 0.14, COLOURS["green"])
    for number in range(bloom.kind.petals):
        angle = -1.2 + 2.4 * number / (bloom.kind.petals - 1) + float(rng.normal(0, 0.08))
        colour = bloom.second if number % 3 == 1 else bloom.colour
        pen.at(0, 0.35, 1.25, angle).polygon(bloom.outline, shade(colour, float(rng.uniform(0.88, 1.08))))
    pen.ellipse(0, 0.4, 0.25, 0.18, bloom.middle)


def _ball(pen: Pen, rng: np.random.Generator, bloom: _Bloom) -> None:
    pen.line([(0, 0.3), (0.1, 1.6)], 0.14, COLOURS["green"])
    for layer, length in enumerate((1.0, 0.72, 0.45)):
        _ring(pen, rng, bloom, bloom.kind.petals, length, mix(bloom.colour, bloom.second, 0.4 * layer), float(rng.uniform(0, 1)))
    pen.ellipse(0, 0.65, 0.42, 0.4, mix(bloom.middle, COLOURS["green"], 0.5))


def _cluster(pen: Pen, rng: np.random.Generator, bloom: _Bloom) -> None:
    for x, y in spread(rng, 6, 0.75, 0.75):
        floret = pen.at(x, y, 0.5, float(rng.uniform(0, 6)))
        _ring(floret, rng, bloom, min(bloom.kind.petals, 6), 1.0, bloom.colour, 0.0)
        floret.ellipse(0, 0, 0.3, 0.3, bloom.second)
        floret.ellipse(0, 0, 0.13, 0.13, bloom.middle)


def _spike(pen: Pen, rng: np.random.Generator, bloom: _Bloom) -> None:
    pen.line([(0, -1.0), (0, 1.7)], 0.12, COLOURS["green"])
    for row, y in enumerate(np.linspace(-1.25, 0.9, 7).tolist()):
        for side in (-1.0, 1.0):
            floret = pen.at(side * (0.1 + 0.05 * row), y, 0.28 + 0.05 * row, side * (0.9 + float(rng.normal(0, 0.2))))
            floret.polygon(bloom.outline, shade(bloom.colour, float(rng.uniform(0.85, 1.1))))
            floret.ellipse(0, -0.45, 0.18, 0.2, bloom.second)
    pen.ellipse(0, 0.1, bloom.centre, bloom.centre, bloom.middle)


def _bells(pen: Pen, rng: np.random.Generator, bloom: _Bloom) -> None:
    pen.line([(0, -1.2), (0, 1.6)], 0.1, COLOURS["green"])
    for y, side in ((-0.8, 1.0), (-0.4, -1.0), (0.05, 1.0), (0.5, -1.0)):
        bell = pen.at(side * 0.12, y, 0.75 + 0.2 * y, side * (-0.75 + float(rng.normal(0, 0.15))))
        bell.polygon([(-0.16, 0), (0.16, 0), (0.34, 0.6), (0.5, 0.95), (-0.5, 0.95), (-0.34, 0.6)], bloom.colour)
        bell.ellipse(0, 0.95, 0.48, 0.18, bloom.second)
        bell.ellipse(0, 0.95, 0.2 + bloom.centre * 0.4, 0.1, bloom.middle)


_FORMS = {
    "rosette": _rosette,
    "double": _double,
    "dotted": _dotted,
    "fringe": _fringe,
    "pinwheel": _pinwheel,
    "orchid": _orchid,
    "trumpet": _trumpet,
    "fan": _fan,
    "ball": _ball,
    "cluster": _cluster,
    "spike": _spike,
    "bells": _bells,
}


def _leaves(pen: Pen, rng: np.random.Generator) -> None:
    colour = vary(rng, COLOURS["green"], 40)
    for angle in rng.uniform(0, 2 * math.pi, int(rng.integers(0, 5))).tolist():
        pen.at(0, 0, float(rng.uniform(1.1, 1.7)), angle).polygon(_petal("pointed", 0.8), shade(colour, float(rng.uniform(0.6, 1.0))))


def draw_flower(rng: np.random.Generator, kind: Flower) -> Image.Image:
    """Draw one flower, or two, of `kind`: an `RGB` image, 42 to 80 pixels a side, with its own tilt, light and background."""
    width, height = rng.integers(42, 81, 2).tolist()
    canvas = background(rng, width, height)
    colours = [vary(rng, COLOURS[name], 22) for name in (kind.colour, kind.second, kind.middle)]
    outline = _petal(kind.shape, float(rng.uniform(0.8, 1.15)) * min(1.0, 9 / kind.petals + 0.35))
    side = min(width, height) * SUPERSAMPLE
    for number in range(2 if rng.random() < 0.2 else 1):
        bloom = _Bloom(kind, colours[0], colours[1], colours[2], outline, kind.centre * float(rng.uniform(0.85, 1.15)))
        shift = 0.28 if number else 0.07
        right, below = (rng.normal(0, shift, 2) * side).tolist()
        middle = (width * SUPERSAMPLE / 2 + right, height * SUPERSAMPLE / 2 + below)
        turn, squeeze = float(rng.normal(0, 0.3)), float(rng.uniform(0.6, 1.0))
        pen = Pen(canvas, middle, side * float(rng.uniform(0.27, 0.43)), turn, bool(rng.random() < 0.5), squeeze)
        _leaves(pen, rng)
        _FORMS[kind.form](pen, rng, bloom)
    occlude(rng, canvas, 0.2)
    return develop(rng, canvas)
