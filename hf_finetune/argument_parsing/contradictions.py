"""Settings from all sources laid over one another, and those among them that contradict each other."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Iterator, Mapping, Set
from typing import Any

from hf_finetune.argument_parsing.checks import LORA_FIELDS, precision_problems
from hf_finetune.argument_parsing.rates import parse_momentum
from hf_finetune.argument_parsing.sources import Rank, Source, say
from hf_finetune.errors import ConfigError


@dataclasses.dataclass(frozen=True)
class Settings:
    """The value of every setting, and where it was given.

    Attributes:
        values: Name → value.
        sources: Name → source.
        python: Whether messages show Python keywords in place of flags.
    """

    values: Mapping[str, Any]
    sources: Mapping[str, Source]
    python: bool = False

    def __getitem__(self, name: str) -> Any:
        return self.values[name]

    def said(self, name: str) -> str:
        """Return a setting with value and origin, such as `--adapter none` or `--adapter lora (preset demo)`."""
        return self.sources[name].say(name, self.values[name])

    def advice(self, name: str, value: Any) -> str:
        """Return how the reader would write a setting."""
        return say(name, value, python=self.python)

    def rank(self, name: str) -> Rank:
        """Return the rank of the source that a setting came from."""
        return self.sources[name].rank

    def overrules(self, name: str, other: str) -> bool:
        """Return whether `other` was given in an earlier source than `name`, which so leaves it without effect knowingly."""
        return self.rank(other) < self.rank(name) or self.rank(other) <= Rank.RECIPE


def lay_over(layers: Iterable[tuple[Source, Mapping[str, Any]]], *, python: bool = False) -> Settings:
    """Lay settings over one another.

    Args:
        layers: Sources with their settings, the earliest first, which holds every setting.
        python: Whether messages show Python keywords.
    """
    values: dict[str, Any] = {}
    sources: dict[str, Source] = {}
    for source, given in layers:
        values.update(given)
        sources.update(dict.fromkeys(given, source))
    return Settings(values, sources, python)


# the settings that a contradiction is about, and its sentence
_Found = Iterator[tuple[tuple[str, ...], str]]


def contradictions(settings: Settings, rejected: Set[str] = frozenset()) -> list[str]:
    """Return one sentence for each pair of settings that cannot hold together, or that this machine cannot do.

    Args:
        settings: All settings.
        rejected: Settings whose value is not the one that was meant; nothing is said of them.
    """
    checks = (
        _adapter,
        _batch_norm,
        _views,
        _columns,
        _duration,
        _best_model,
        _average,
        _directory,
        _hub,
        _finder,
        _optimizer,
        _needs,
        _precision,
    )
    return [sentence for check in checks for names, sentence in check(settings) if rejected.isdisjoint(names)]


def _adapter(settings: Settings) -> _Found:
    if settings["adapter"] != "none" and settings["freeze"] != "none":
        alone = "the head alone" if settings["freeze"] == "head" else "a part of the network"
        yield (
            ("adapter", "freeze"),
            f"{settings.said('freeze')} and {settings.said('adapter')} exclude each other: give {settings.advice('adapter', 'none')} "
            f"to train {alone}, or {settings.advice('freeze', 'none')} to train with LoRA.",
        )
    if settings["adapter"] == "none":
        remedy = f"add {settings.advice('adapter', 'lora')} or leave it out"
        for name in LORA_FIELDS:
            if not settings.overrules("adapter", name):
                yield ("adapter", name), f"{settings.said(name)} has no effect with {settings.said('adapter')}: {remedy}."


def _batch_norm(settings: Settings) -> _Found:
    if settings["adapter"] != "none" and settings["batch_norm"] is not None:
        yield (
            ("adapter", "batch_norm"),
            f"{settings.said('batch_norm')} and {settings.said('adapter')} exclude each other: an adapter does not save BatchNorm, "
            f"so it is frozen; leave {settings.sources['batch_norm'].name('batch_norm')} out.",
        )
    if settings["batch_norm"] and settings["batch_norm_scope"] == "frozen" and settings["freeze"] == "none":
        yield (
            ("batch_norm_scope", "freeze"),
            f"{settings.said('batch_norm_scope')} rules nothing with {settings.said('freeze')}, which freezes nothing; leave it out.",
        )
    if settings["batch_norm"] and settings["freeze"] == "batch_norm_only":
        yield (
            ("batch_norm", "freeze"),
            f"{settings.said('batch_norm')} and {settings.said('freeze')} both say what BatchNorm does; give one of them.",
        )
    if settings["unfreeze_warmup"] and not settings["freeze"].startswith(("gradual", "head_then_all")):
        yield (
            ("unfreeze_warmup", "freeze"),
            f"{settings.said('unfreeze_warmup')} has no effect with {settings.said('freeze')}, which unfreezes nothing after the first "
            "epoch; leave it out.",
        )


def _views(settings: Settings) -> _Found:
    names = ("augmentation", "augmentation_views")
    fixed = settings["augmentation"] == "none" and not settings["random_erasing"]
    unused = fixed and settings["augmentation_views"] is not None
    if unused and not settings.overrules(*names):
        yield names, f"{settings.said('augmentation_views')} has no effect with {settings.said('augmentation')}; leave one of them out."


def _columns(settings: Settings) -> _Found:
    if settings["image_column"] == settings["label_column"]:
        names = ("image_column", "label_column")
        yield names, f"{settings.said('image_column')} and {settings.said('label_column')} name the same column."


def _duration(settings: Settings) -> _Found:
    if settings["max_steps"] > 0 and not settings.overrules("max_steps", "num_train_epochs"):
        names = ("max_steps", "num_train_epochs")
        yield names, f"{settings.said('max_steps')} leaves {settings.said('num_train_epochs')} without effect; give one of the two."


def _best_model(settings: Settings) -> _Found:
    if not settings["load_best_model_at_end"]:
        return
    names = ("load_best_model_at_end", "eval_strategy", "save_strategy")
    best, off = settings.said("load_best_model_at_end"), settings.advice("load_best_model_at_end", False)
    both = f"{settings.said('eval_strategy')} and {settings.said('save_strategy')}"
    if settings["eval_strategy"] == "no":
        yield names, f"{best} needs evaluations to choose by, not {settings.said('eval_strategy')}; evaluate, or give {off}."
    elif settings["save_strategy"] not in (settings["eval_strategy"], "best"):
        yield names, f"{best} needs equal strategies, not {both}; make them equal, or give {off}."


def _average(settings: Settings) -> _Found:
    for sharding in ("fsdp", "deepspeed"):
        if settings["ema_decay"] is not None and settings[sharding]:
            names = ("ema_decay", sharding)
            yield names, f"{settings.said('ema_decay')} needs whole weights in every process, not {settings.said(sharding)}; leave one out."


def _directory(settings: Settings) -> _Found:
    if settings["overwrite_output_dir"] and settings["resume_from_checkpoint"] is not None:
        yield (
            ("overwrite_output_dir", "resume_from_checkpoint"),
            f"{settings.said('overwrite_output_dir')} and {settings.said('resume_from_checkpoint')} exclude each other: "
            "the first deletes the checkpoint that the second goes on from.",
        )


def _hub(settings: Settings) -> _Found:
    if settings["push_to_hub"] and not settings["hub_model_id"]:
        yield ("push_to_hub", "hub_model_id"), f"{settings.said('push_to_hub')} needs {settings.advice('hub_model_id', 'USER/NAME')}."


def _finder(settings: Settings) -> _Found:
    for other in ("resume_from_checkpoint", "push_to_hub"):
        if settings["lr_finder"] and settings[other]:
            names = ("lr_finder", other)
            yield (
                names,
                f"{settings.said('lr_finder')} and {settings.said(other)} exclude each other: the range test leaves no model behind.",
            )


def _optimizer(settings: Settings) -> _Found:
    names = ("optim", "optim_args")
    if settings["optim"] == "nag":
        try:
            parse_momentum(settings["optim_args"])
        except ConfigError as error:
            yield names, f"{settings.sources['optim_args'].name('optim_args')} {error}"
    if settings["optim"] == "adam" and settings["optim_args"]:
        yield names, f"{settings.said('optim_args')} has no effect with {settings.said('optim')}; give --adam_beta1 and the like."


def _needs(settings: Settings) -> _Found:
    needs = {
        "early_stopping_patience": ("load_best_model_at_end", True),
        "batch_norm_scope": ("batch_norm", "frozen"),
        "dataloader_persistent_workers": ("dataloader_num_workers", 1),
        "dataloader_prefetch_factor": ("dataloader_num_workers", 1),
        "fsdp_config": ("fsdp", "full_shard"),
    }
    for name, (other, value) in needs.items():
        if (
            settings[name] not in (None, "all") and settings[name] and settings[other] in (None, False, 0, -1, "", [])
        ):  # -1 leaves the number of workers to the machine
            yield (
                (name, other),
                f"{settings.said(name)} has no effect without {settings.advice(other, value)}; add it or leave the first out.",
            )


def _precision(settings: Settings) -> _Found:
    for field, sentence in precision_problems(settings.values, lambda name: settings.sources[name].name(name)):
        yield (field,), sentence
