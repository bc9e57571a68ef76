"""Learning rates over time that the Trainer does not have: a warm-up for each layer group when it is unfrozen, and the range test's."""

from __future__ import annotations

import functools
from collections.abc import Callable

from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR, LRScheduler

from hf_finetune.errors import ConfigError


def with_unfreeze_warmup(scheduler: LRScheduler, starts: list[int], steps: int) -> LRScheduler:
    """Let the rate of each parameter group rise linearly over the first `steps` steps after it is unfrozen.

    Args:
        scheduler: The course that all groups share, a `LambdaLR`; changed in place.
        starts: For each parameter group the step at which it is unfrozen; one that trains from step 0 keeps the shared warm-up alone.
        steps: At least 1. In its first step a group gets 1 / steps of its rate.

    Raises:
        ConfigError: If the course is not a function of the step alone, as `reduce_lr_on_plateau` is not.
    """
    if not isinstance(scheduler, LambdaLR):
        raise ConfigError(
            "--unfreeze_warmup needs a learning rate that depends on the step alone; use --lr_scheduler_type cosine or linear."
        )
    # partials, unlike objects of a class, are not written into the scheduler's state
    scheduler.lr_lambdas = [
        functools.partial(_warmed_up, course=course, start=start, steps=steps) if start else course
        for course, start in zip(scheduler.lr_lambdas, starts, strict=True)
    ]
    for group, base, course in zip(scheduler.optimizer.param_groups, scheduler.base_lrs, scheduler.lr_lambdas, strict=True):
        group["lr"] = base * course(scheduler.last_epoch)
    return scheduler


def _warmed_up(step: int, *, course: Callable[[int], float], start: int, steps: int) -> float:
    return course(step) * min(1.0, max(0, step - start + 1) / steps)


def exponential_course(optimizer: Optimizer, low: float, high: float, steps: int) -> LambdaLR:
    """Return a scheduler that multiplies every rate by a factor that grows from `low` to `high`, exponentially, over `steps` steps."""
    return LambdaLR(optimizer, functools.partial(exponential, low=low, high=high, steps=steps))


def exponential(step: int, *, low: float, high: float, steps: int) -> float:
    """Return the value of a step, counted from 0, on the way from `low` to `high`."""
    return low * (high / low) ** (step / max(steps - 1, 1))


def optimizer_step_of_epoch(epoch: int, batches: int, accumulation: int) -> int:
    """Return the first optimizer step of an epoch, counted from 0."""
    return epoch * -(-batches // accumulation)
