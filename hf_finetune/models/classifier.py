"""Pretrained image classifiers: from a name to a model with its head and labels set, and back to a directory that a pipeline loads."""

from __future__ import annotations

import contextlib
import logging
import pickle
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, cast

import torch
import transformers
from huggingface_hub.errors import HTTPError
from safetensors import SafetensorError
from torch import nn
from transformers import AutoConfig, PreTrainedConfig, PreTrainedModel, TimmWrapperConfig
from transformers.image_processing_utils import BaseImageProcessor
from transformers.models.auto.modeling_auto import MODEL_FOR_IMAGE_CLASSIFICATION_MAPPING
from transformers.models.timm_wrapper.image_processing_timm_wrapper import TimmWrapperImageProcessor

from hf_finetune.errors import ModelError, listed
from hf_finetune.models.names import block_names, head_names
from hf_finetune.models.processors import load_processor, output_size
from hf_finetune.models.regularisation import set_regularisation
from hf_finetune.models.resizing import check_input_size, set_image_size
from hf_finetune.models.sources import ModelSource, first_line, raise_for_hub, resolve_source

logger = logging.getLogger(__name__)

_SUPPORTED = "ViT, DeiT, DINOv2, Swin, ConvNeXt, ResNet, BEiT and the other image classifiers of transformers, and every timm model"
_HEAD_STD = 0.002
# Missing without harm: made anew by the constructor, or used in pretraining only.
_HARMLESS = ("mask_token", "num_batches_tracked", "relative_position_index")
_UNREADABLE = (
    OSError,
    HTTPError,
    ValueError,
    TypeError,
    KeyError,
    RuntimeError,
    ImportError,
    AttributeError,
    SafetensorError,
    pickle.UnpicklingError,
)


def load_classifier(
    name: str,
    label_names: Sequence[str],
    *,
    image_size: int | None = None,
    crop_pct: float | None = None,
    revision: str | None = None,
    dropout: float | None = None,
    drop_path: float | None = None,
    notices: list[str] | None = None,
) -> tuple[PreTrainedModel, BaseImageProcessor]:
    """Load a pretrained image classifier for the given labels, with the image processor that fits it.

    The head is kept where the checkpoint was trained on these very labels (a finished run), and begins anew in every other case: weights
    from N(0, 0.002²), drawn from torch's global generator, so that all classes begin almost equally likely (nearly the zeros of section
    3.2 of https://arxiv.org/abs/2010.11929). A checkpoint that lacks weights of the backbone is refused.

    Args:
        name: Embedded name (`tiny_vit`, `tiny_resnet`), directory, or Hub id (`google/vit-base-patch16-224-in21k`).
        label_names: Names of the classes, in the order of the integer labels; at least two, all different.
        image_size: Height and width in pixels; None for the checkpoint's own. Position embeddings are resampled where there are any.
        crop_pct: Side of the centre crop over the shortest side of the resized picture, in (0, 1]; None for the checkpoint's own.
        revision: Branch, tag or commit on the Hub.
        dropout: Dropout probability in [0, 1), see `hf_finetune.models.regularisation`; None for the checkpoint's own.
        drop_path: Highest probability of leaving a residual branch out, in [0, 1); None for the checkpoint's own.
        notices: Gets one sentence for each thing that was replaced: a head, a processor that squashed pictures.

    Returns:
        The model, in evaluation mode and float32 on the CPU, from `pixel_values` [batch, 3, height, width] to `logits` [batch, labels]; and
        its image processor.

    Raises:
        ModelError: If the name, the directory, its weights or the image size cannot be used, or the network has no such dropout.
        HubError: If the Hub cannot be reached or fails, and the model is not cached.
    """
    labels = _checked_labels(label_names)
    if image_size is not None and image_size < 1:
        raise ModelError(f"image_size is {image_size}; it must be at least 1 pixel.")
    if crop_pct is not None and not 0 < crop_pct <= 1:
        raise ModelError(f"crop_pct is {crop_pct}; it must be above 0 and at most 1.")
    source = resolve_source(name, revision)
    with quiet():
        config = _read_config(source)
        saved_labels = _saved_labels(config)
        _set_labels(config, labels)
        set_regularisation(config, dropout=dropout, drop_path=drop_path, name=name)
        model, info = _read_weights(source, config)
        _check_weights(model, info, source)
        _settle_head(model, info, kept=saved_labels == labels, source=source, notices=notices)
        _require_spec(model, source, notices)
        if image_size is not None:
            model = set_image_size(model, image_size, name)
        processor = load_processor(source, model.config, image_size, crop_pct, notices)
    check_input_size(model, *output_size(processor), name)
    return model, processor


def save_classifier(model: PreTrainedModel, processor: BaseImageProcessor, directory: str | Path) -> Path:
    """Write a directory that `pipeline("image-classification", model=DIRECTORY)` loads without this package.

    Args:
        model: A classifier; an adapter must have been merged (`merge_lora`).
        processor: What `load_classifier` gave with it. For a timm model it is written into `config.json`, as timm does.
        directory: Made where it is not there; files in it are replaced.

    Returns:
        The directory.

    Raises:
        ModelError: If `model` is not a plain model of `transformers`, a `PeftModel` for example.
    """
    if not isinstance(model, PreTrainedModel):
        raise ModelError(f"A {type(model).__name__} cannot be saved as a classifier; merge its adapter first with merge_lora(model).")
    directory = Path(directory)
    directory.mkdir(parents=True, exist_ok=True)
    with quiet():
        if isinstance(processor, TimmWrapperImageProcessor):
            spec = {key: list(value) if isinstance(value, tuple) else value for key, value in processor.data_config.items()}
            model.config.pretrained_cfg = {**(getattr(model.config, "pretrained_cfg", None) or {}), **spec}
        else:
            processor.save_pretrained(directory)
        model.save_pretrained(directory)
    return directory


def _checked_labels(label_names: Sequence[str]) -> list[str]:
    labels = [str(label) for label in label_names]
    if len(labels) < 2:
        raise ModelError(f"A classifier needs at least two labels; got {len(labels)} ({listed(labels)}).")
    if doubled := sorted({label for label in labels if labels.count(label) > 1}):
        raise ModelError(f"Label names must differ from each other; {listed(doubled)} occurs more than once.")
    return labels


def _read_config(source: ModelSource) -> PreTrainedConfig:
    try:
        config = AutoConfig.from_pretrained(source.location, revision=source.revision)
    except _UNREADABLE as error:
        raise_for_hub(source, "config.json", error)
        raise ModelError(f"The config.json of {source.name!r} cannot be read ({first_line(error)}). Supported are {_SUPPORTED}.") from None
    if type(config) not in MODEL_FOR_IMAGE_CLASSIFICATION_MAPPING:
        raise ModelError(
            f"The model {source.name!r} is a {config.model_type!r} model, which does not classify images. Supported are {_SUPPORTED}."
        )
    return config


def _saved_labels(config: PreTrainedConfig) -> list[str]:
    return [label for _, label in sorted((config.id2label or {}).items())]


def _set_labels(config: PreTrainedConfig, labels: list[str]) -> None:
    config.id2label = dict(enumerate(labels))
    config.label2id = {label: index for index, label in enumerate(labels)}
    # Without this, float labels would switch the loss to one sigmoid a class, and the saved pipeline with it.
    config.problem_type = "single_label_classification"
    if isinstance(config, TimmWrapperConfig):
        # timm's own save_for_hf writes num_classes here too, which the wrapper then passes twice.
        config.model_args = {key: value for key, value in (config.model_args or {}).items() if key != "num_classes"}


def _read_weights(source: ModelSource, config: PreTrainedConfig) -> tuple[PreTrainedModel, dict[str, Any]]:
    found = MODEL_FOR_IMAGE_CLASSIFICATION_MAPPING[type(config)]
    # Where there are two classes, the second one is distilled and cannot be trained on labels.
    model_class: Any = found[0] if isinstance(found, tuple) else found
    try:
        return model_class.from_pretrained(
            source.location,
            revision=source.revision,
            config=config,
            dtype=torch.float32,
            ignore_mismatched_sizes=True,
            output_loading_info=True,
        )
    except _UNREADABLE as error:
        raise_for_hub(source, "weights", error)
        raise ModelError(f"The weights of {source.name!r} cannot be loaded: {first_line(error)}.") from None


def _check_weights(model: PreTrainedModel, info: dict[str, Any], source: ModelSource) -> None:
    """Refuse a checkpoint whose backbone does not fit its configuration; `from_pretrained` fills such gaps with random weights."""
    heads = tuple(f"{head}." for head in head_names(model))
    wrong = [
        f"{key} {_shape(has)} instead of {_shape(wants)}"
        for key, has, wants in sorted(info["mismatched_keys"])
        if not key.startswith(heads)
    ]
    missing = sorted(
        key for key in info["missing_keys"] if not key.startswith(heads) and not key.endswith(_HARMLESS) and "pooler." not in key
    )
    surplus = _surplus_blocks(model, info["unexpected_keys"])
    problems = [
        *([f"{len(wrong)} weights with other shapes ({listed(wrong, 3)})"] if wrong else []),
        *([f"{len(missing)} weights missing ({listed(missing, 3)})"] if missing else []),
        *([f"{len(surplus)} weights of layers that the configuration does not have ({listed(surplus, 3)})"] if surplus else []),
    ]
    if problems:
        raise ModelError(
            f"The weights of {source.name!r} do not fit its config.json: {'; '.join(problems)}. "
            "Check that config.json and the weights come from the same checkpoint."
        )


def _surplus_blocks(model: PreTrainedModel, unexpected: set[str]) -> list[str]:
    """Return the unexpected keys that lie beside the model's blocks: layers that the configuration leaves out."""
    containers = {name.rpartition(".")[0] + "." for name in block_names(model)}
    prefix = f"{model.base_model_prefix}."
    spellings = tuple(containers | {container.removeprefix(prefix) for container in containers})
    return sorted(key for key in unexpected if key.startswith(spellings) and key[len(_longest(key, spellings)) :].split(".")[0].isdigit())


def _longest(key: str, prefixes: tuple[str, ...]) -> str:
    return max((prefix for prefix in prefixes if key.startswith(prefix)), key=len)


def _settle_head(model: PreTrainedModel, info: dict[str, Any], *, kept: bool, source: ModelSource, notices: list[str] | None) -> None:
    heads = tuple(f"{head}." for head in head_names(model))
    absent = {*info["missing_keys"], *(key for key, *_ in info["mismatched_keys"])}
    loaded = not any(key.startswith(heads) for key in absent)
    if loaded and kept:
        return
    _reset_head(model)
    if loaded:
        _tell(f"The head of {source.name} was trained on {model.config.num_labels} classes with other names, so it begins anew.", notices)


def _reset_head(model: PreTrainedModel) -> None:
    """Draw small weights for the head, so that all classes begin almost equally likely."""
    for name in head_names(model):
        for module in model.get_submodule(name).modules():
            if isinstance(module, (nn.Linear, nn.Conv2d)):
                nn.init.trunc_normal_(module.weight, std=_HEAD_STD)
                if module.bias is not None:
                    nn.init.zeros_(module.bias)


def _require_spec(model: PreTrainedModel, source: ModelSource, notices: list[str] | None) -> None:
    """Give a timm checkpoint that does not say how to prepare pictures what timm says of its architecture."""
    config = model.config
    if isinstance(config, TimmWrapperConfig) and not getattr(config, "pretrained_cfg", None):
        known = cast(Any, model.timm_model).pretrained_cfg
        config.pretrained_cfg = {
            key: known[key] for key in ("input_size", "interpolation", "mean", "std", "crop_pct", "crop_mode") if known.get(key)
        }
        _tell(
            f"The config.json of {source.name} does not say how to prepare pictures; it is done as timm says for {config.architecture}.",
            notices,
        )


def _tell(notice: str, notices: list[str] | None) -> None:
    logger.warning(notice)
    if notices is not None:
        notices.append(notice)


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Silence the load report and the progress bars of transformers: what matters of them is checked here, and told as an error."""
    verbosity, bar = transformers.logging.get_verbosity(), transformers.logging.is_progress_bar_enabled()
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    try:
        yield
    finally:
        transformers.logging.set_verbosity(verbosity)
        if bar:
            transformers.logging.enable_progress_bar()


def _shape(size: Sequence[int]) -> str:
    return "×".join(map(str, size)) or "scalar"
