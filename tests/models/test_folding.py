"""BatchNorm folded into convolutions gives the same predictions, and leaves no trace."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import timm
import torch
from timm.layers import StdConv2d
from torch import nn
from transformers import ResNetConfig, ResNetForImageClassification

from hf_finetune.models.folding import folded_batchnorm


class Called(nn.Module):
    """Any network, called with `pixel_values`."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, pixel_values: torch.Tensor) -> torch.Tensor:
        return self.network(pixel_values)


def lived_in(model: nn.Module) -> nn.Module:
    """Give BatchNorm statistics and weights as training leaves them, other than those of a new network."""
    torch.manual_seed(0)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d) and module.track_running_stats:
            module.running_mean.normal_(0, 0.1)
            module.running_var.uniform_(0.5, 2)
            if module.affine:
                nn.init.uniform_(module.weight, 0.5, 1.5)
                nn.init.normal_(module.bias, 0, 0.1)
    return model.eval()


def folded_norms(model: nn.Module) -> int:
    return sum(isinstance(module, nn.BatchNorm2d) and "forward" in vars(module) for module in model.modules())


def predictions(model: nn.Module, images: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, int]:
    """Return what a model says without and with folding, and how many BatchNorm were folded."""
    with torch.no_grad():
        plain = model(pixel_values=images)
        with folded_batchnorm(model, lambda: {"pixel_values": images[:1]}):
            return plain, model(pixel_values=images), folded_norms(model)


# all of a ResNet, of timm's layers with activation and "same" padding; half of a DenseNet, which concatenates first; none of a ViT
@pytest.mark.parametrize(
    ("name", "norms", "folded"),
    [
        ("resnet18", 20, 20),
        ("tf_efficientnet_lite0", 49, 49),
        ("mobilenetv3_small_100", 34, 34),
        ("densenet121", 121, 59),
        ("ghostnet_100", 80, 80),
        ("levit_128s", 4, 4),
        ("vit_tiny_patch16_224", 0, 0),
        ("nfnet_l0", 0, 0),
    ],
)
def test_a_network_says_the_same_and_is_left_as_it_was(name: str, norms: int, folded: int):
    model = lived_in(Called(timm.create_model(name, num_classes=7)))
    state = {key: value.clone() for key, value in model.state_dict().items()}
    images = torch.randn(2, 3, 224, 224)
    plain, found, count = predictions(model, images)
    assert sum(isinstance(module, nn.BatchNorm2d) for module in model.modules()) == norms
    assert count == folded
    torch.testing.assert_close(found, plain, rtol=0, atol=float(1e-5 * plain.abs().max()))
    assert folded_norms(model) == 0
    assert model.state_dict().keys() == state.keys()
    assert all(torch.equal(value, state[key]) for key, value in model.state_dict().items())
    with torch.no_grad():
        assert torch.equal(model(pixel_values=images), plain)


def test_a_network_of_transformers_is_folded_whole():
    config = ResNetConfig(embedding_size=8, hidden_sizes=[8, 16], depths=[1, 1], layer_type="basic", num_labels=3)
    model = lived_in(ResNetForImageClassification(config))
    images = torch.randn(2, 3, 32, 32)
    with torch.no_grad():
        plain = model(pixel_values=images).logits
        with folded_batchnorm(model, lambda: {"pixel_values": images[:1]}):
            assert folded_norms(model) == sum(isinstance(module, nn.BatchNorm2d) for module in model.modules()) > 0
            torch.testing.assert_close(model(pixel_values=images).logits, plain, rtol=1e-5, atol=1e-6)


class TwoReaders(nn.Module):
    """BatchNorm gets the output of a convolution that something else uses too."""

    def __init__(self, how: Callable[[torch.Tensor, torch.Tensor], torch.Tensor]) -> None:
        super().__init__()
        self.convolution, self.norm, self.how = nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), how

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        made = self.convolution(images)
        return self.how(made, self.norm(made))


class Twice(nn.Module):
    """A convolution and its BatchNorm run twice."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Conv2d(3, 3, 3), nn.BatchNorm2d(3))

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return self.layers(self.layers(images))


@pytest.mark.parametrize(
    "network",
    [
        TwoReaders(lambda made, normed: made + normed),
        TwoReaders(lambda made, normed: made.flatten(1).mean(1)[:, None, None, None] * normed),
        TwoReaders(lambda made, normed: torch.cat([made, normed])),
        Twice(),
        nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.BatchNorm2d(4)),
        nn.Sequential(nn.BatchNorm2d(3), nn.Conv2d(3, 4, 3)),
        nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4, track_running_stats=False)),
        nn.Sequential(StdConv2d(3, 4, 3), nn.BatchNorm2d(4)),
    ],
    ids=["sum", "view", "concatenation", "twice", "activation between", "norm first", "no statistics", "weights standardised"],
)
def test_what_cannot_be_folded_is_not(network: nn.Module):
    plain, found, count = predictions(lived_in(Called(network)), torch.randn(2, 3, 8, 8))
    assert count == 0
    assert torch.equal(found, plain)


def test_a_norm_without_weights_and_a_convolution_with_bias():
    network = nn.Sequential(nn.Conv2d(3, 4, 3, bias=True), nn.BatchNorm2d(4, affine=False))
    plain, found, count = predictions(lived_in(Called(network)), torch.randn(2, 3, 8, 8))
    assert count == 1
    torch.testing.assert_close(found, plain, rtol=1e-5, atol=1e-6)


def test_bfloat16_rounds_as_without_folding():
    model = lived_in(Called(timm.create_model("resnet18", num_classes=7)))
    images = torch.randn(2, 3, 64, 64)
    exact, _, _ = predictions(model, images)
    with torch.autocast("cpu", torch.bfloat16):
        plain, found, count = predictions(model, images)
    assert count == 20
    errors = [float((scores - exact).abs().max()) for scores in (plain, found)]
    assert errors[1] < 2 * errors[0]


def test_an_error_within_the_block_leaves_the_network_as_it_was():
    model = lived_in(Called(nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4))))
    with pytest.raises(KeyError), folded_batchnorm(model, lambda: {"pixel_values": torch.randn(1, 3, 8, 8)}):
        raise KeyError("a full disk, say")
    assert folded_norms(model) == 0


def test_a_network_in_training_mode_keeps_its_modes_and_statistics():
    model = lived_in(Called(nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4)))).train()
    before = model.network[1].running_mean.clone()
    with folded_batchnorm(model, lambda: {"pixel_values": torch.randn(1, 3, 8, 8)}):
        pass
    assert model.training
    assert model.network[1].training
    assert torch.equal(model.network[1].running_mean, before)
