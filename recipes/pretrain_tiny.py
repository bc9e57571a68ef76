"""Pretrain an embedded checkpoint on drawn shapes and textures; never on pets, flowers or digits.

    python recipes/pretrain_tiny.py --model tiny_vit --output_dir hf_finetune/models/embedded/tiny_vit

The network learns the class in its own head and, in heads that are thrown away afterwards, every factor of a figure: outline, texture,
colours, edge, parts, marks. Writes a folder that `AutoModelForImageClassification` and `pipeline` load, and `training.json` beside it.
"""

from __future__ import annotations

import argparse
import io
import json
import sys
import time
from pathlib import Path

import numpy as np
import timm
import torch
import transformers
from datasets import Dataset, DatasetDict
from PIL import Image
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.nn import functional as F

from hf_finetune.data.drawn import drawn_shapes
from hf_finetune.data.drawn_shapes import FACTORS, SHAPE_NAMES

IMAGE_SIZE = {"tiny_vit": 48, "tiny_resnet": 64}
MEAN = STD = [0.5, 0.5, 0.5]
VIT = {"patch_size": 8, "hidden_size": 96, "num_hidden_layers": 6, "num_attention_heads": 3, "intermediate_size": 192}
RESNET = {"stem_width": 8, "channels": [16, 32, 64, 80]}


def build_model(name: str) -> transformers.PreTrainedModel:
    """Return the network with random weights, its head as wide as the pretraining classes."""
    labels = {"id2label": dict(enumerate(SHAPE_NAMES)), "label2id": {label: i for i, label in enumerate(SHAPE_NAMES)}}
    count, size = len(SHAPE_NAMES), IMAGE_SIZE[name]
    if name == "tiny_vit":
        return transformers.ViTForImageClassification(transformers.ViTConfig(image_size=size, **VIT, **labels))
    prepared = {"input_size": [3, size, size], "mean": MEAN, "std": STD, "interpolation": "bicubic", "crop_pct": 1.0, "crop_mode": "center"}
    prepared |= {"num_classes": count, "pool_size": [2, 2], "first_conv": "conv1.0", "classifier": "fc"}
    config = transformers.TimmWrapperConfig(
        architecture="resnet18d", model_args=RESNET, pretrained_cfg=prepared, num_labels=count, **labels
    )
    model = transformers.TimmWrapperForImageClassification(config)
    # The wrapper's constructor overwrote timm's own initialisation.
    model.timm_model.load_state_dict(timm.create_model("resnet18d", num_classes=count, **RESNET).state_dict())
    return model


def to_tensors(dataset: Dataset, side: int) -> tuple[Tensor, dict[str, Tensor]]:
    """Return the images, `[n, 3, side, side]` uint8, squeezed to a square, and every label column, `[n]` int64."""
    rows = dataset.with_format("arrow")[:]["image"].to_pylist()
    pixels = [np.asarray(Image.open(io.BytesIO(row["bytes"])).resize((side, side), Image.Resampling.BICUBIC)) for row in rows]
    return torch.from_numpy(np.stack(pixels)).permute(0, 3, 1, 2), {name: torch.tensor(dataset[name][:]) for name in ("label", *FACTORS)}


def augment(images: Tensor, size: int) -> Tensor:
    """Return random affine views with colour jitter, `[n, 3, size, size]` float32 in about [-1, 1]; `images` are uint8."""

    def uniform(low: float, high: float, *shape: int) -> Tensor:
        return torch.rand(len(images), *shape) * (high - low) + low

    angle, scale = uniform(-0.3, 0.3), uniform(0.7, 1.05)
    across = scale * uniform(0.85, 1.15)
    rows = [torch.cos(angle) * across, -torch.sin(angle) * scale, uniform(-0.12, 0.12)]
    rows += [torch.sin(angle) * across, torch.cos(angle) * scale, uniform(-0.12, 0.12)]
    grid = F.affine_grid(torch.stack(rows, 1).view(-1, 2, 3), [len(images), 3, size, size], align_corners=False)
    views = F.grid_sample(images.float() / 127.5 - 1, grid, mode="bilinear", padding_mode="reflection", align_corners=False)
    return views * uniform(0.7, 1.3, 1, 1, 1) + uniform(-0.2, 0.2, 3, 1, 1) + uniform(-0.2, 0.2, 1, 1, 1)


class ManyHeads(nn.Module):
    """The network with one more linear head for each factor, all of them on the features that its own head reads."""

    def __init__(self, model: transformers.PreTrainedModel) -> None:
        super().__init__()
        self.model, self.features = model, torch.empty(0)
        head = model.timm_model.get_classifier() if hasattr(model, "timm_model") else model.classifier
        self.heads = nn.ModuleDict({name: nn.Linear(head.in_features, len(values)) for name, values in FACTORS.items()})
        head.register_forward_pre_hook(lambda _, inputs: setattr(self, "features", inputs[0]))

    def forward(self, views: Tensor) -> dict[str, Tensor]:
        """Return the logits of `views`, `[n, 3, h, w]`, by label column, each `[n, classes]`."""
        own = self.model(pixel_values=views).logits  # sets self.features on the way
        return {"label": own, **{name: head(self.features) for name, head in self.heads.items()}}


def pretrain(model: transformers.PreTrainedModel, data: DatasetDict, size: int, args: argparse.Namespace) -> dict[str, float]:
    """Train `model` in place with AdamW and a cosine schedule; return the accuracy of every head on held-out figures, in [0, 1]."""
    network, (images, labels) = ManyHeads(model), to_tensors(data["train"], size + 8)
    optimizer = torch.optim.AdamW(network.parameters(), lr=args.learning_rate, weight_decay=0.05)
    steps = args.epochs * (len(images) // args.batch_size)
    schedule = transformers.get_cosine_schedule_with_warmup(optimizer, 200, steps)
    network.train()
    for epoch in range(args.epochs):
        start, total = time.perf_counter(), 0.0
        for rows in torch.randperm(len(images)).split(args.batch_size)[: steps // args.epochs]:
            logits = network(augment(images[rows], size))
            loss = sum(F.cross_entropy(value, labels[name][rows]) for name, value in logits.items())
            optimizer.zero_grad()
            loss.backward()
            nn.utils.clip_grad_norm_(network.parameters(), 1.0)
            optimizer.step()
            schedule.step()
            total += loss.item()
        print(f"epoch {epoch + 1}/{args.epochs}  loss {total * args.epochs / steps:.3f}  {time.perf_counter() - start:.0f} s", flush=True)
    network.eval()
    images, labels = to_tensors(data["test"], size)
    with torch.no_grad():
        parts = [network(views.float() / 127.5 - 1) for views in images.split(256)]
    guesses = {name: torch.cat([part[name] for part in parts]).argmax(1) for name in labels}
    return {name: round(float((guesses[name] == labels[name]).float().mean()), 4) for name in labels}


def save(model: transformers.PreTrainedModel, size: int, directory: Path) -> None:
    """Write the checkpoint folder: weights in float32 (the head of the ViT in float16), config, and how an image is prepared."""
    if hasattr(model, "timm_model"):
        model.config.save_pretrained(directory)  # makes the folder too
        weights = {key: value.contiguous() for key, value in model.timm_model.state_dict().items()}  # timm's own names: timm loads it too
        return save_file(weights, directory / "model.safetensors", {"format": "pt"})
    small = {key: value.half() if key.startswith("classifier.") else value for key, value in model.state_dict().items()}
    model.save_pretrained(directory, state_dict=small)  # 2 MB or less in all; who fine-tunes draws a new head
    crop = {"size": {"shortest_edge": size}, "do_center_crop": True, "crop_size": {"height": size, "width": size}}
    transformers.ViTImageProcessor(**crop, resample=Image.Resampling.BICUBIC, image_mean=MEAN, image_std=STD).save_pretrained(directory)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", choices=sorted(IMAGE_SIZE), required=True)
    parser.add_argument("--output_dir", type=Path, required=True)
    for flag, value in {"seed": 0, "epochs": 12, "images_per_class": 70, "batch_size": 96}.items():
        parser.add_argument(f"--{flag}", type=int, default=value)
    parser.add_argument("--learning_rate", type=float, default=2e-3)
    args = parser.parse_args()
    torch.manual_seed(args.seed)
    start, size, model = time.perf_counter(), IMAGE_SIZE[args.model], build_model(args.model)
    accuracy = pretrain(model, drawn_shapes(args.seed, n_train=args.images_per_class), size, args)
    save(model, size, args.output_dir)
    record = {"command": "python " + " ".join(sys.argv), "seed": args.seed, "date": time.strftime("%Y-%m-%d")}
    record |= {"runtime_s": round(time.perf_counter() - start), "parameters": model.num_parameters(), "pretraining_accuracy": accuracy}
    record |= {"versions": {module.__name__: module.__version__ for module in (torch, transformers, timm, np)}}
    (args.output_dir / "training.json").write_text(json.dumps(record, indent=2) + "\n")


if __name__ == "__main__":
    main()
