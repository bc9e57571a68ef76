"""Tools that the procedural data sets share: an antialiased pen, backgrounds, light, noise, and rows of PNG bytes.

Everything random comes from one generator an image (`image_rng`), so that an image depends on nothing but its own key.
"""

from __future__ import annotations

import io
import math
import zlib
from collections.abc import Iterable, Sequence

import numpy as np
from numpy.typing import ArrayLike, NDArray
from PIL import Image, ImageDraw, ImageFilter

Colour = tuple[int, int, int]
Array = NDArray[np.float64]

SUPERSAMPLE = 2
_ANGLES = np.linspace(0.0, 2.0 * math.pi, 28, endpoint=False)
_CIRCLE = np.stack([np.cos(_ANGLES), np.sin(_ANGLES)], axis=1)


def image_rng(name: str, seed: int, *key: int) -> np.random.Generator:
    """Return the generator of one image: it depends on the data set's name, the seed and the key, and on no other image.

    Args:
        name: Name of the data set.
        seed: Seed of the whole data set, not negative.
        key: What tells this image from the others, such as split, class and index; not negative.
    """
    return np.random.default_rng([zlib.crc32(name.encode()), seed, *key])


def mix(first: Colour, second: Colour, part: float) -> Colour:
    """Return the colour `part` (in [0, 1]) of the way from `first` to `second`."""
    return (
        round(first[0] + (second[0] - first[0]) * part),
        round(first[1] + (second[1] - first[1]) * part),
        round(first[2] + (second[2] - first[2]) * part),
    )


def shade(colour: Colour, factor: float) -> Colour:
    """Return `colour` darker (`factor` below 1) or lighter (above 1)."""
    return mix(colour, (0, 0, 0), 1.0 - factor) if factor <= 1.0 else mix(colour, (255, 255, 255), min(1.0, factor - 1.0))


def vary(rng: np.random.Generator, colour: Colour, amount: float) -> Colour:
    """Return `colour` with independent uniform noise of at most `amount` (of 255) a channel."""
    red, green, blue = np.clip(np.asarray(colour) + rng.uniform(-amount, amount, 3), 0, 255).astype(int).tolist()
    return red, green, blue


def random_colour(rng: np.random.Generator, low: int = 20, high: int = 235) -> Colour:
    """Return a colour with channels in [low, high), more often muted than bright."""
    red, green, blue = rng.integers(low, high, 3).tolist()
    grey = (red + green + blue) // 3
    return mix((red, green, blue), (grey, grey, grey), float(rng.uniform(0.0, 0.9)))


class Pen:
    """Draws filled outlines, given in object coordinates (x right, y down), through one affine transform.

    Args:
        image: Supersampled canvas, `RGB`, or `L` where a mask is drawn.
        origin: Where the object's (0, 0) lies, in pixels of the canvas.
        scale: Pixels of the canvas a unit of the object.
        angle: Clockwise turn, in radians.
        flip: Mirror left and right.
        squeeze: Factor on the object's x axis.
    """

    def __init__(
        self, image: Image.Image, origin: tuple[float, float], scale: float, angle: float = 0.0, flip: bool = False, squeeze: float = 1.0
    ) -> None:
        cosine, sine = math.cos(angle) * scale, math.sin(angle) * scale
        across = -squeeze if flip else squeeze
        self.image = image
        self.matrix = np.array([[cosine * across, sine * across], [-sine, cosine]])
        self.offset = np.array(origin, dtype=float)
        self.draw = ImageDraw.Draw(image)

    def onto(self, image: Image.Image) -> Pen:
        """Return a pen with the same transform on another canvas."""
        return self._moved(image, ImageDraw.Draw(image), self.matrix, self.offset)

    def at(self, x: float, y: float, scale: float = 1.0, angle: float = 0.0) -> Pen:
        """Return a pen on the same canvas whose origin is (x, y), turned by `angle` radians and scaled, in this pen's coordinates."""
        cosine, sine = math.cos(angle) * scale, math.sin(angle) * scale
        matrix = np.array([[cosine, sine], [-sine, cosine]]) @ self.matrix
        return self._moved(self.image, self.draw, matrix, np.array([x, y]) @ self.matrix + self.offset)

    def _moved(self, image: Image.Image, draw: ImageDraw.ImageDraw, matrix: Array, offset: Array) -> Pen:
        pen = object.__new__(Pen)
        pen.image, pen.draw, pen.matrix, pen.offset = image, draw, matrix, offset
        return pen

    def polygon(self, points: ArrayLike, fill: Colour | int) -> None:
        """Fill the outline through `points`, `[n, 2]` in object coordinates."""
        placed = np.asarray(points, dtype=float) @ self.matrix + self.offset
        self.draw.polygon(placed.ravel().tolist(), fill=fill)

    def ellipse(
        self, x: float, y: float, across: float, down: float, fill: Colour | int, angle: float = 0.0, edge: Array | None = None
    ) -> None:
        """Fill an ellipse with half axes `across` and `down`, turned by `angle` radians; `edge`, `[28]`, scales its radius all round."""
        points = _CIRCLE * (across, down)
        if edge is not None:
            points = points * edge[:, None]
        if angle:
            cosine, sine = math.cos(angle), math.sin(angle)
            points = points @ np.array([[cosine, sine], [-sine, cosine]])
        self.polygon(np.add(points, (x, y)), fill)

    def line(self, points: ArrayLike, width: float, fill: Colour | int) -> None:
        """Draw a line of `width` object units through `points`, `[n, 2]`."""
        placed = np.asarray(points, dtype=float) @ self.matrix + self.offset
        scale = math.sqrt(abs(float(np.linalg.det(self.matrix))))
        self.draw.line(placed.ravel().tolist(), fill=fill, width=max(1, round(width * scale)), joint="curve")


def rough_edge(rng: np.random.Generator, amount: float) -> Array:
    """Return 28 factors round 1 for `Pen.ellipse(edge=...)`: a ragged outline, `amount` being the largest deviation."""
    return 1.0 + amount * rng.uniform(-1.0, 1.0, len(_ANGLES))


def background(rng: np.random.Generator, width: int, height: int) -> Image.Image:
    """Return a supersampled backdrop for an image of `width` × `height` pixels: plain, floor and wall, blotches, strokes or blinds."""
    size = (width * SUPERSAMPLE, height * SUPERSAMPLE)
    first = random_colour(rng)
    second = mix(first, random_colour(rng), 0.6)
    image = Image.new("RGB", size, first)
    draw = ImageDraw.Draw(image)
    kind = rng.integers(7)
    if kind == 1:
        horizon = size[1] * rng.uniform(0.3, 0.8)
        draw.polygon([0, horizon, size[0], horizon + rng.uniform(-12, 12), size[0], size[1], 0, size[1]], fill=second)
    elif kind == 2:
        for x, y, radius in (rng.random((12, 3)) * (*size, size[0] * 0.25)).tolist():
            draw.ellipse([x - radius, y - radius, x + radius, y + radius], fill=mix(first, second, radius * 4 / size[0]))
    elif kind == 3:
        for x, y, lean, part in (rng.random((30, 4)) * (*size, 24, 1)).tolist():
            draw.line([x, y, x + lean - 12, y - 24], fill=mix(first, second, part), width=3)
    elif kind == 4:
        step, lean = int(rng.integers(8, 28)), float(rng.uniform(-30, 30))
        for x in range(-30, size[0] + 30, 2 * step):
            draw.polygon([x, 0, x + step, 0, x + step + lean, size[1], x + lean, size[1]], fill=mix(first, second, 0.5))
    return image


def occlude(rng: np.random.Generator, image: Image.Image, chance: float) -> None:
    """With probability `chance`, put a bar or a blob of a random colour in front of the object, in place."""
    if rng.random() >= chance:
        return
    width, height = image.size
    draw, colour = ImageDraw.Draw(image), random_colour(rng)
    x, y = float(rng.uniform(0, width)), float(rng.uniform(0, height))
    if rng.random() < 0.5:
        lean = float(rng.uniform(-0.5, 0.5)) * width
        draw.line([x - lean, 0, x + lean, height], fill=colour, width=int(rng.integers(width // 16, width // 7)))
    else:
        across, down = (rng.uniform(0.07, 0.16, 2) * (width, height)).tolist()
        draw.ellipse([x - across, y - down, x + across, y + down], fill=colour)


def develop(rng: np.random.Generator, image: Image.Image, light: float = 0.25, noise: float = 6.0, tint: float = 0.1) -> Image.Image:
    """Return the photograph of a supersampled canvas: reduced, lit from one side, tinted, sometimes blurred, with sensor noise.

    Args:
        rng: The image's own generator.
        image: Supersampled `RGB` canvas.
        light: Largest relative change of brightness, in [0, 1).
        noise: Largest standard deviation of the noise, in grey levels of 255.
        tint: Largest relative change of one colour channel, in [0, 1).
    """
    image = image.reduce(SUPERSAMPLE)
    if rng.random() < 0.3:
        image = image.filter(ImageFilter.GaussianBlur(float(rng.uniform(0.3, 0.9))))
    pixels = np.asarray(image, dtype=np.float32)
    height, width = pixels.shape[:2]
    slope = rng.uniform(-light, light, 2).astype(np.float32)
    across, down = (np.linspace(-1, 1, count, dtype=np.float32) for count in (width, height))
    ramp = slope[0] * across[None, :] + slope[1] * down[:, None] + np.float32(rng.uniform(-light, light))
    gain = np.exp(ramp)[..., None] * np.exp(rng.uniform(-tint, tint, 3)).astype(np.float32)
    grain = rng.standard_normal(pixels.shape, dtype=np.float32) * np.float32(rng.uniform(1.0, noise))
    return Image.fromarray(np.clip(pixels * gain + grain, 0, 255).astype(np.uint8))


def png(image: Image.Image) -> dict[str, bytes | None]:
    """Return `image` as a row of a `datasets.Image` column: PNG bytes, without a path.

    The pixels are stored, not deflated: quicker to write and to read, and the bytes do not depend on the version of zlib.
    """
    buffer = io.BytesIO()
    image.save(buffer, "png", compress_level=0)
    return {"bytes": buffer.getvalue(), "path": None}


def pick(rng: np.random.Generator, choices: Sequence[str]) -> str:
    """Return one of `choices`, each as likely as the others."""
    return choices[int(rng.integers(len(choices)))]


def spread(rng: np.random.Generator, count: int, across: float, down: float) -> Iterable[tuple[float, float]]:
    """Yield `count` points (x, y), uniform in [-across, across] × [-down, down]."""
    return ((x, y) for x, y in (rng.uniform(-1, 1, (count, 2)) * (across, down)).tolist())
