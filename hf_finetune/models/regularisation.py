"""Dropout and stochastic depth of a backbone, under the name that its configuration has for them."""

from __future__ import annotations

from typing import Any

import timm
import torch
from transformers import PreTrainedConfig, TimmWrapperConfig

from hf_finetune.errors import ModelError

# what configurations of transformers call dropout of activations; that of attention weights stays as it is
_DROPOUT = ("hidden_dropout_prob", "hidden_dropout", "dropout", "dropout_rate", "classifier_dropout", "classifier_dropout_prob")
_DROP_PATH = ("drop_path_rate", "drop_connect_rate", "stochastic_depth_prob")


def set_regularisation(config: PreTrainedConfig, *, dropout: float | None, drop_path: float | None, name: str) -> None:
    """Set the probabilities of dropout and of stochastic depth (Huang et al. 2016, arXiv:1603.09382) in a configuration.

    For a timm net dropout is that before the head (`drop_rate`). Stochastic depth rises from 0 in the first block to `drop_path` in the
    last in most networks.

    Args:
        config: Changed in place, before the model is built.
        dropout: In [0, 1); None leaves it as it is.
        drop_path: In [0, 1); None leaves it as it is.
        name: Of the checkpoint, for the message.

    Raises:
        ModelError: If the network has nothing of the kind.
    """
    for flag, value, own, in_timm in (("dropout", dropout, _DROPOUT, "drop_rate"), ("drop_path", drop_path, _DROP_PATH, "drop_path_rate")):
        if value is None:
            continue
        if isinstance(config, TimmWrapperConfig):
            if not _takes(config.architecture, in_timm, value):
                raise ModelError(f"--{flag} {value} does not apply to {name!r}: the {config.architecture} of timm has no {in_timm}.")
            config.model_args = {**(config.model_args or {}), in_timm: value}
            continue
        found = [key for key in own if isinstance(getattr(config, key, None), int | float)]
        if not found:
            raise ModelError(f"--{flag} {value} does not apply to {name!r}: a {config.model_type} has none of {', '.join(own)}.")
        for key in found:
            setattr(config, key, value)


def _takes(architecture: str, argument: str, value: float) -> bool:
    """Return whether a network of timm can be built with `argument`; most hand it on through `**kwargs`, so only building one tells."""
    try:
        with torch.device("meta"):  # no memory, no random numbers
            options: dict[str, Any] = {argument: value}
            timm.create_model(architecture, pretrained=False, **options)
    except TypeError:
        return False
    return True
