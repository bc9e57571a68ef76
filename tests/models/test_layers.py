"""Layer groups: ordered, complete, and without a parameter in two of them."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import timm
import torch
from torch import nn
from transformers import TimmWrapperForImageClassification

from hf_finetune.models.classifier import load_classifier
from hf_finetune.models.freezing import FreezeSchedule, freeze, head_parameter_names
from hf_finetune.models.layers import group_table, has_stages, layer_groups
from hf_finetune.models.names import block_names
from tests.builders import BUILDERS, LABELS


@pytest.mark.parametrize("kind", BUILDERS)
def test_every_parameter_is_in_exactly_one_group(kind: str, tmp_path: Path) -> None:
    BUILDERS[kind](tmp_path)
    model, _ = load_classifier(str(tmp_path), LABELS)
    groups = layer_groups(model)
    members = [name for group in groups for name in group.parameters]
    assert sorted(members) == sorted(name for name, _ in model.named_parameters())
    assert [group.name for group in groups if group.name not in ("stem", "tail", "head")] == block_names(model)
    assert groups[0].name == "stem"
    assert groups[-1].name == "head"
    assert set(groups[-1].parameters) == head_parameter_names(model)


def test_what_follows_the_last_block_is_a_group_where_it_holds_a_convolution(tmp_path: Path) -> None:
    for kind, names in {"timm_efficientnet": ["tail", "head"], "vit": ["vit.layers.2", "head"]}.items():
        BUILDERS[kind](tmp_path / kind)
        model, _ = load_classifier(str(tmp_path / kind), LABELS)
        groups = layer_groups(model)
        assert [group.name for group in groups[-2:]] == names
    assert "vit.layernorm.weight" in groups[-2].parameters


# without weights, so that large networks cost nothing
ARCHITECTURES = (
    *("resnet50", "efficientnet_b0", "tf_efficientnet_lite0", "mobilenetv3_large_100", "regnety_016", "densenet121", "vgg11_bn"),
    *("rexnet_100", "convnext_tiny", "convnextv2_nano", "vit_small_patch16_224", "deit_small_distilled_patch16_224"),
    *("beit_base_patch16_224", "eva02_tiny_patch14_224", "swin_tiny_patch4_window7_224", "swinv2_tiny_window8_256", "mixer_b16_224"),
    *("levit_128", "mobilevitv2_100", "edgenext_small", "fastvit_t8", "hiera_tiny_224", "cait_s24_224", "xcit_nano_12_p8_224"),
    *("pvt_v2_b0", "inception_v3"),
)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_groups_of_timm_networks_are_complete_and_ordered(architecture: str) -> None:
    with torch.device("meta"):
        net = timm.create_model(architecture, num_classes=10)
    model = TimmWrapperForImageClassification.__new__(TimmWrapperForImageClassification)
    nn.Module.__init__(model)
    model.timm_model = net
    groups = layer_groups(model)
    members = [name for group in groups for name in group.parameters]
    assert sorted(members) == sorted(name for name, _ in model.named_parameters())
    assert (groups[0].name, groups[-1].name) == ("stem", "head")
    assert len(groups) >= 6
    largest = max(sum(math.prod(model.get_parameter(name).shape) for name in group.parameters) for group in groups)
    assert largest < 0.95 * sum(parameter.numel() for parameter in model.parameters())


STAGES = {
    "timm_resnet": ["stem", "timm_model.layer1", "timm_model.layer2", "timm_model.layer3", "timm_model.layer4", "head"],
    "vit": ["stem", "vit.layers.0", "vit.layers.1", "vit.layers.2", "head"],
}


@pytest.mark.parametrize("kind", BUILDERS)
def test_stages_are_whole_blocks_put_together(kind: str, tmp_path: Path) -> None:
    BUILDERS[kind](tmp_path)
    model, _ = load_classifier(str(tmp_path), LABELS)
    blocks, stages = layer_groups(model), layer_groups(model, "stage")
    assert [name for group in stages for name in group.parameters] == [name for group in blocks for name in group.parameters]
    assert len(stages) <= len(blocks)
    for block in blocks:
        assert sum(set(block.parameters) <= set(stage.parameters) for stage in stages) == 1
    assert has_stages(model) == (stages != blocks)
    if kind in STAGES:
        assert [group.name for group in stages] == STAGES[kind]


def test_another_granularity_is_refused(tmp_path: Path) -> None:
    BUILDERS["vit"](tmp_path)
    with pytest.raises(ValueError, match=r"^granularity must be one of block, stage, not 'layer'\.$"):
        layer_groups(load_classifier(str(tmp_path), LABELS)[0], "layer")


def test_the_table_counts_what_trains(tmp_path: Path) -> None:
    BUILDERS["timm_resnet"](tmp_path)
    model, _ = load_classifier(str(tmp_path), LABELS)
    freeze(model, FreezeSchedule.last(1, granularity="stage"))
    header, *rows = [line.split() for line in group_table(model, "stage").splitlines()]
    assert header == ["layer", "group", "parameters", "trainable"]
    assert [row[0] for row in rows] == STAGES["timm_resnet"]
    assert [row[1] == row[2] for row in rows] == [False, False, False, False, True, True]
    assert [row[2] for row in rows[:4]] == ["0"] * 4
    assert sum(int(row[1].replace(",", "")) for row in rows) == model.num_parameters()


@pytest.mark.parametrize("kind", BUILDERS)
@pytest.mark.parametrize("layers", [1, 2])
def test_freeze_last_trains_the_last_groups_and_the_head(kind: str, layers: int, tmp_path: Path) -> None:
    BUILDERS[kind](tmp_path)
    model, _ = load_classifier(str(tmp_path), LABELS)
    freeze(model, FreezeSchedule.last(layers))
    expected = {name for group in layer_groups(model)[-1 - layers :] for name in group.parameters}
    assert {name for name, parameter in model.named_parameters() if parameter.requires_grad} == expected
