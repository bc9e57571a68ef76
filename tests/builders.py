"""Tiny model directories, built in the test: config, safetensors and processor of 32-pixel models, a few milliseconds each."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy
import timm
import torch
from PIL import Image
from safetensors.torch import save_file
from transformers import (
    BeitConfig,
    BeitForImageClassification,
    BeitImageProcessor,
    BitImageProcessor,
    ConvNextConfig,
    ConvNextForImageClassification,
    ConvNextImageProcessor,
    ConvNextV2Config,
    ConvNextV2ForImageClassification,
    DeiTConfig,
    DeiTForImageClassification,
    DeiTForImageClassificationWithTeacher,
    DeiTImageProcessor,
    Dinov2Config,
    Dinov2Model,
    Dinov2WithRegistersConfig,
    Dinov2WithRegistersForImageClassification,
    PreTrainedConfig,
    PreTrainedModel,
    ResNetConfig,
    ResNetForImageClassification,
    SwinConfig,
    SwinForImageClassification,
    Swinv2Config,
    Swinv2ForImageClassification,
    ViTConfig,
    ViTForImageClassification,
    ViTImageProcessor,
)

from hf_finetune.models.freezing import head_parameter_names

SIZE = 32
LABELS = ["cat", "dog", "owl"]
MEAN, STD = [0.5, 0.4, 0.3], [0.25, 0.2, 0.3]
ENCODER = {
    "hidden_size": 32,
    "num_hidden_layers": 3,
    "num_attention_heads": 2,
    "intermediate_size": 64,
    "image_size": SIZE,
    "patch_size": 8,
}


def build_vit_dir(path: Path, **config: Any) -> Path:
    """ViT with a 5-class head and the squashing processor that most ViT checkpoints come with."""
    return _save(path, ViTForImageClassification(ViTConfig(**{**ENCODER, "num_labels": 5, **config})), _square(ViTImageProcessor))


def build_deit_dir(path: Path, **config: Any) -> Path:
    """Distilled DeiT, saved as the class with two heads that cannot be trained on labels."""
    model = DeiTForImageClassificationWithTeacher(DeiTConfig(**{**ENCODER, "num_labels": 5, **config}))
    return _save(path, model, _cropping(DeiTImageProcessor))


def build_plain_deit_dir(path: Path, **config: Any) -> Path:
    """DeiT with one head."""
    return _save(path, DeiTForImageClassification(DeiTConfig(**{**ENCODER, "num_labels": 5, **config})), _cropping(DeiTImageProcessor))


def build_dinov2_dir(path: Path, **config: Any) -> Path:
    """DINOv2 as it is published: no head, position embeddings for 56 pixels, weights in half precision."""
    model = Dinov2Model(Dinov2Config(**{**ENCODER, "mlp_ratio": 2, "image_size": 56, **config})).half()
    return _save(path, model, _cropping(BitImageProcessor))


def build_dinov2_registers_dir(path: Path, **config: Any) -> Path:
    """DINOv2 with registers."""
    config = {**ENCODER, "mlp_ratio": 2, "image_size": 56, "num_labels": 5, **config}
    return _save(path, Dinov2WithRegistersForImageClassification(Dinov2WithRegistersConfig(**config)), _cropping(BitImageProcessor))


def build_swin_dir(path: Path, **config: Any) -> Path:
    """Swin of two stages."""
    model = SwinForImageClassification(SwinConfig(**{**SWIN, **config}))
    return _save(path, model, _square(ViTImageProcessor))


def build_swinv2_dir(path: Path, **config: Any) -> Path:
    """Swin v2 of two stages."""
    return _save(path, Swinv2ForImageClassification(Swinv2Config(**{**SWIN, **config})), _square(ViTImageProcessor))


def build_convnext_dir(path: Path, **config: Any) -> Path:
    """ConvNeXt of two stages, with the processor that takes its crop from `crop_pct`."""
    model = ConvNextForImageClassification(ConvNextConfig(**{**CONVNEXT, **config}))
    return _save(path, model, ConvNextImageProcessor(size={"shortest_edge": SIZE}, crop_pct=0.875, image_mean=MEAN, image_std=STD))


def build_convnextv2_dir(path: Path, **config: Any) -> Path:
    """ConvNeXt v2 of two stages."""
    model = ConvNextV2ForImageClassification(ConvNextV2Config(**{**CONVNEXT, **config}))
    return _save(path, model, ConvNextImageProcessor(size={"shortest_edge": SIZE}, crop_pct=0.875, image_mean=MEAN, image_std=STD))


def build_resnet_dir(path: Path, **config: Any) -> Path:
    """ResNet of two stages of two basic blocks, with BatchNorm that has seen data."""
    defaults = {"embedding_size": 8, "hidden_sizes": [8, 16], "depths": [2, 2], "layer_type": "basic", "num_labels": 5}
    model = ResNetForImageClassification(ResNetConfig(**{**defaults, **config}))
    return _save(path, model, ConvNextImageProcessor(size={"shortest_edge": SIZE}, crop_pct=0.875, image_mean=MEAN, image_std=STD))


def build_beit_dir(path: Path, **config: Any) -> Path:
    """BEiT with a table of relative positions in every layer."""
    model = BeitForImageClassification(BeitConfig(**{**ENCODER, "num_labels": 5, "use_relative_position_bias": True, **config}))
    return _save(path, model, _square(BeitImageProcessor))


def build_timm_dir(
    path: Path,
    architecture: str,
    model_args: dict[str, Any] | None = None,
    pretrained_cfg: dict[str, Any] | None = None,
    num_classes: int = 5,
) -> Path:
    """Any timm architecture, saved in timm's own layout (un-prefixed keys) with timm's own initialisation."""
    path.mkdir(parents=True, exist_ok=True)
    model = timm.create_model(architecture, num_classes=num_classes, **(model_args or {}))
    randomize(model)
    spec = {"input_size": [3, SIZE, SIZE], "mean": MEAN, "std": STD, "interpolation": "bicubic", "crop_pct": 0.875, "crop_mode": "center"}
    spec |= pretrained_cfg or {}
    config: dict[str, Any] = {"architecture": architecture, "num_classes": num_classes, "pretrained_cfg": spec}
    if model_args:
        config["model_args"] = model_args
    (path / "config.json").write_text(json.dumps(config))
    save_file({key: value.contiguous() for key, value in model.state_dict().items()}, path / "model.safetensors", metadata={"format": "pt"})
    return path


def build_timm_vit_dir(path: Path) -> Path:
    """A timm ViT of fixed size."""
    return build_timm_dir(path, "vit_tiny_patch16_224", {"img_size": SIZE, "patch_size": 8, "depth": 3, "embed_dim": 32, "num_heads": 2})


def build_timm_deit_dir(path: Path) -> Path:
    """A timm distilled DeiT: two heads."""
    args = {"img_size": SIZE, "patch_size": 8, "depth": 2, "embed_dim": 32, "num_heads": 2}
    return build_timm_dir(path, "deit_tiny_distilled_patch16_224", args)


def build_timm_swin_dir(path: Path) -> Path:
    """A timm Swin of two stages."""
    args = {"img_size": SIZE, "patch_size": 4, "window_size": 4, "embed_dim": 8, "depths": [2, 2], "num_heads": [2, 2]}
    return build_timm_dir(path, "swin_tiny_patch4_window7_224", args)


def build_timm_resnet_dir(path: Path) -> Path:
    """A timm ResNet with BatchNorm that has seen data and a head called `fc`."""
    return build_timm_dir(path, "resnet10t", {"channels": [8, 8, 16, 16], "stem_width": 8})


def build_timm_convnext_dir(path: Path) -> Path:
    """A timm ConvNeXt with a head called `head.fc`."""
    return build_timm_dir(path, "convnext_atto", {"depths": [1, 1, 1, 2], "dims": [8, 8, 16, 16]})


def build_timm_efficientnet_dir(path: Path) -> Path:
    """A timm EfficientNet with depthwise convolutions."""
    return build_timm_dir(path, "test_efficientnet")


SWIN = {"image_size": SIZE, "patch_size": 4, "embed_dim": 8, "depths": [2, 2], "num_heads": [2, 2], "window_size": 4, "num_labels": 5}
CONVNEXT = {"hidden_sizes": [8, 16], "depths": [1, 2], "num_stages": 2, "image_size": SIZE, "num_labels": 5}

HF_BUILDERS: dict[str, Callable[[Path], Path]] = {
    "vit": build_vit_dir,
    "deit": build_deit_dir,
    "deit_plain": build_plain_deit_dir,
    "dinov2": build_dinov2_dir,
    "dinov2_registers": build_dinov2_registers_dir,
    "swin": build_swin_dir,
    "swinv2": build_swinv2_dir,
    "convnext": build_convnext_dir,
    "convnextv2": build_convnextv2_dir,
    "resnet": build_resnet_dir,
    "beit": build_beit_dir,
}
TIMM_BUILDERS: dict[str, Callable[[Path], Path]] = {
    "timm_vit": build_timm_vit_dir,
    "timm_deit": build_timm_deit_dir,
    "timm_swin": build_timm_swin_dir,
    "timm_resnet": build_timm_resnet_dir,
    "timm_convnext": build_timm_convnext_dir,
    "timm_efficientnet": build_timm_efficientnet_dir,
}
BUILDERS = HF_BUILDERS | TIMM_BUILDERS


def randomize(model: torch.nn.Module, seed: int = 0) -> None:
    """Give norms, biases and running statistics random values, so that a residual branch is never switched off by its zero gain."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, tensor in [*model.named_parameters(), *model.named_buffers()]:
            if not tensor.is_floating_point() or tensor.ndim != 1:
                continue
            noise = torch.rand(tensor.shape, generator=generator)
            tensor.copy_(0.2 * (noise - 0.5) if name.endswith(("bias", "running_mean")) else 0.75 + 0.5 * noise)


def scores_of(classifier: Callable[..., Any], picture: Image.Image) -> dict[str, float]:
    """What a pipeline says, by label."""
    return {row["label"]: row["score"] for row in classifier(picture, top_k=99)}


def draw_head(model: torch.nn.Module) -> None:
    """Give the head weights that tell pictures apart."""
    generator = torch.Generator().manual_seed(1)
    for name in sorted(head_parameter_names(model)):
        parameter = model.get_parameter(name)
        parameter.data = torch.randn(parameter.shape, generator=generator)


def photo(seed: int = 0, size: tuple[int, int] = (61, 40)) -> Image.Image:
    """A small random RGB image of (width, height) pixels."""
    values = numpy.random.default_rng(seed).integers(0, 256, size=(size[1], size[0], 3), dtype=numpy.uint8)
    return Image.fromarray(values)


def _save(path: Path, model: PreTrainedModel, processor: Any) -> Path:
    assert isinstance(model.config, PreTrainedConfig)
    dtype = model.dtype
    model.float()
    randomize(model)
    model.to(dtype).save_pretrained(path)
    processor.save_pretrained(path)
    return path


def _square(processor: Any) -> Any:
    return processor(size={"height": SIZE, "width": SIZE}, image_mean=MEAN, image_std=STD)


def _cropping(processor: Any) -> Any:
    size, crop = {"shortest_edge": 36}, {"height": SIZE, "width": SIZE}
    return processor(size=size, crop_size=crop, do_center_crop=True, image_mean=MEAN, image_std=STD)
