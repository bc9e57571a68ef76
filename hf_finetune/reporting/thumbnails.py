"""Small pictures that a page carries inside itself."""

from __future__ import annotations

import base64
import io
from collections.abc import Callable

from PIL import Image, ImageOps

from hf_finetune.errors import FinetuneError, listed

ImageSource = Callable[[str, str], Image.Image]


class Thumbnails:
    """Turns images of one split into JPEG data addresses, each image once, and remembers which could not be read.

    Args:
        images: Maps (split, image id) to an image of any mode; None where the images are out of reach.
        split: The split that the identifiers belong to.
        side: Longest side in pixels.
    """

    def __init__(self, images: ImageSource | None, split: str, side: int = 144) -> None:
        self._images = images
        self._split = split
        self._side = side
        self._made: dict[str, str | None] = {}

    @property
    def available(self) -> bool:
        """Whether there are images at all."""
        return self._images is not None

    @property
    def notices(self) -> list[str]:
        """What to tell the reader: a sentence that names the images that could not be read, or nothing."""
        failed = [image_id for image_id, made in self._made.items() if made is None]
        count = "1 thumbnail" if len(failed) == 1 else f"{len(failed)} thumbnails"
        return [f"{count} could not be made, since the image cannot be read: {listed(failed)}."] if failed else []

    def address(self, image_id: str) -> str | None:
        """Return a `data:image/jpeg` address, or None where the image cannot be had."""
        if self._images is None:
            return None
        if image_id not in self._made:
            try:
                self._made[image_id] = _jpeg_address(self._images(self._split, image_id), self._side)
            except (FinetuneError, LookupError, OSError, ValueError):
                # one unreadable photo must not cost the report of a long run; the report counts and names it
                self._made[image_id] = None
        return self._made[image_id]


def _jpeg_address(image: Image.Image, side: int) -> str:
    small = ImageOps.exif_transpose(image)
    small.thumbnail((side, side))
    if small.mode in ("RGBA", "LA", "PA") or "transparency" in small.info:
        layer = small.convert("RGBA")
        small = Image.alpha_composite(Image.new("RGBA", layer.size, "white"), layer)
    buffer = io.BytesIO()
    small.convert("RGB").save(buffer, "JPEG", quality=82, optimize=True)
    return "data:image/jpeg;base64," + base64.b64encode(buffer.getvalue()).decode("ascii")
