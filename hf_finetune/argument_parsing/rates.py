"""What `--group_lr` takes, as text: `layer4=1e-4,layer3=3e-5`."""

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
