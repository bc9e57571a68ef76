"""95 % intervals for the figures of a report: Wilson for proportions, a seeded bootstrap for everything else."""

from __future__ import annotations

import math
from collections.abc import Callable
from statistics import NormalDist
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from hf_finetune.errors import DataError

if TYPE_CHECKING:
    from hf_finetune.reporting.metrics import IntArray


class Interval(NamedTuple):
    """A two-sided interval, `low <= high`, in the unit of the figure it belongs to."""

    low: float
    high: float


def wilson_interval(successes: int, trials: int, confidence: float = 0.95) -> Interval:
    """Interval of a proportion, such as an accuracy; stays inside [0, 1] and is sound for few trials and for 0 % and 100 %.

    Source: Wilson, Probable inference, the law of succession, and statistical inference, 1927.

    Args:
        successes: Images that were right, 0..trials.
        trials: All images, at least 1.
        confidence: Coverage, between 0 and 1.

    Raises:
        DataError: When the counts make no proportion.
    """
    if trials < 1 or not 0 <= successes <= trials:
        raise DataError(f"{successes} of {trials} is no proportion; give at least one trial and 0..trials successes.")
    z = NormalDist().inv_cdf(0.5 + confidence / 2)
    rate = successes / trials
    centre = (rate + z * z / (2 * trials)) / (1 + z * z / trials)
    half = z * math.sqrt(rate * (1 - rate) / trials + z * z / (4 * trials * trials)) / (1 + z * z / trials)
    # rounding alone must not put 100 % outside the interval of 100 %
    return Interval(min(rate, max(0.0, centre - half)), max(rate, min(1.0, centre + half)))


def bootstrap_interval(
    statistic: Callable[[IntArray], float], size: int, *, resamples: int = 1000, confidence: float = 0.95, seed: int = 0
) -> Interval:
    """Percentile bootstrap interval of a figure in [0, 1], moved by the bootstrap's own bias.

    Resampled calibration errors are larger and resampled macro-F1 smaller than the figure itself, because repeated images make
    classes and bins look emptier; subtracting that mean shift keeps the figure inside its interval.

    Args:
        statistic: Maps image indices, shape [size] and drawn with repetition, to the figure.
        size: Number of images, at least 1.
        resamples: Bootstrap samples.
        confidence: Coverage, between 0 and 1.
        seed: Seed of the draws; the same seed gives the same interval.

    Raises:
        DataError: When there are no images.
    """
    if size < 1:
        raise DataError("An interval needs at least one image.")
    generator = np.random.default_rng(seed)
    estimate = statistic(np.arange(size))
    draws = np.array([statistic(generator.integers(0, size, size)) for _ in range(resamples)])
    tail = (1 - confidence) / 2
    low, high = np.quantile(draws, [tail, 1 - tail]) - (draws.mean() - estimate)
    return Interval(float(np.clip(low, 0, estimate)), float(np.clip(high, estimate, 1)))


def seeds_and_photos_interval(values: np.ndarray, *, resamples: int = 4000, confidence: float = 0.95, seed: int = 0) -> Interval:
    """Return the percentile bootstrap interval of a mean over seeds and photos, both drawn anew in every resample.

    Seeds and photos are crossed, so each is resampled by itself: A. B. Owen, The pigeonhole bootstrap, Annals of Applied Statistics 1,
    2007, https://arxiv.org/abs/0712.1111. With one seed the interval is over photos alone, and too narrow for another training.

    Args:
        values: [seeds, photos]: 1 for a right prediction and 0 for a wrong one, or the difference of two such.
        resamples: Bootstrap samples.
        confidence: Coverage, between 0 and 1.
        seed: Of the draws; the same seed gives the same interval.
    """
    generator = np.random.default_rng(seed)
    seeds, photos = values.shape
    weights_of_seeds = generator.multinomial(seeds, np.full(seeds, 1 / seeds), resamples) / seeds
    means = np.empty(resamples)
    for start in range(0, resamples, 500):  # bounds the memory
        part = slice(start, min(start + 500, resamples))
        weights_of_photos = generator.multinomial(photos, np.full(photos, 1 / photos), part.stop - part.start) / photos
        means[part] = np.einsum("rs,sp,rp->r", weights_of_seeds[part], values, weights_of_photos, optimize=True)
    tail = (1 - confidence) / 2
    low, high = np.quantile(means, [tail, 1 - tail])
    return Interval(float(low), float(high))
