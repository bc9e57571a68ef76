"""Numbers by name, as text: what `--group_lr` takes, `layer4=1e-4,layer3=3e-5`, and `--optim_args` of NAG, `momentum=0.9`."""

from __future__ import annotations

import math

from hf_finetune.errors import ConfigError


def parse_rates(text: str) -> dict[str, float]:
    """Return name → learning rate; an empty text gives none.

    Raises:
        ConfigError: If the text has another form; it completes "NAME must be ...".
    """
    rates: dict[str, float] = {}
    for part in filter(None, text.split(",")):
        name, _, value = (piece.strip() for piece in part.partition("="))
        try:
            rate = float(value)
        except ValueError:
            rate = math.nan
        if not name or name in rates or not (rate > 0 and math.isfinite(rate)):
            raise ConfigError(f"must be names of layer groups with rates above 0, such as layer4=1e-4,layer3=3e-5, not {text!r}.")
        rates[name] = rate
    return rates


def parse_momentum(text: str | None) -> float:
    """Return the momentum that `--optim_args` of NAG gives, 0.9 where it gives none.

    Raises:
        ConfigError: If the text has another form; it completes "NAME must be ...".
    """
    name, _, value = (text or "momentum=0.9").partition("=")
    try:
        momentum = float(value)
    except ValueError:
        momentum = math.nan
    if name.strip() != "momentum" or not 0 < momentum < 1:
        raise ConfigError(f"must be momentum=NUMBER with a number between 0 and 1 for --optim nag, not {text!r}.")
    return momentum
