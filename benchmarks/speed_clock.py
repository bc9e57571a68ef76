"""How the speed benchmark takes time and memory, alike for every side."""

from __future__ import annotations

import resource
import sys
import time
from collections.abc import Callable
from typing import Any

import torch
from speed_rows import BATCH, Row


def now() -> float:
    """Return the time in seconds at which everything that was asked of the accelerator is done."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter()


def figures(images: int, seconds: float, **more: Any) -> dict[str, Any]:
    """Return a measurement: images, seconds, the peak resident memory of this process and of its largest child in MiB, the device."""
    mebibyte = 2**20 if sys.platform == "darwin" else 2**10  # in the units of ru_maxrss
    own, child = (resource.getrusage(who).ru_maxrss / mebibyte for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
    device = torch.cuda.get_device_name() if torch.cuda.is_available() else "cpu"
    return {"images": images, "seconds": seconds, "peak_mib": own, "child_peak_mib": child, "device": device, **more}


class Marks:
    """When a training was called and began, and when what precedes its first epoch, its first step and its last step ended."""

    def __init__(self) -> None:
        self.started = now()
        self.began = self.ready = self.first = self.last = self.started
        self.epochs = self.steps = 0

    def training_begins(self) -> None:
        """Remember when loaders and optimizer are there."""
        self.began = now()

    def epoch_begins(self) -> None:
        """Remember when the first epoch begins."""
        if self.epochs == 0:
            self.ready = now()
        self.epochs += 1

    def step_ended(self) -> None:
        """Remember the first and the latest step."""
        self.steps, self.last = self.steps + 1, now()
        if self.steps == 1:
            self.first = self.last

    def figures(self, row: Row, photos: int) -> dict[str, Any]:
        """Return the measurement of a training that has just ended.

        Without the warm-up, what is done between the beginning and the first epoch still counts, since photos may be decoded or features
        computed there; making loaders and optimizer does not.
        """
        parts = {"startup_seconds": self.began - self.started, "caching_seconds": self.ready - self.began}
        if row.whole:
            return figures(photos * row.epochs, now() - self.started, **parts)
        return figures((self.steps - 1) * BATCH, parts["caching_seconds"] + self.last - self.first, **parts)


def time_prediction(predict: Callable[[Any], Any], warm_up: Any, photos: Any, count: int) -> dict[str, Any]:
    """Predict a batch of other photos to warm up, then time the prediction of `photos`, `count` of them."""
    predict(warm_up)
    started = now()
    predict(photos)
    return figures(count, now() - started)
