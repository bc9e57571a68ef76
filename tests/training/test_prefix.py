"""The frozen part is found in any network, left out without a trace, and refused where it is not the same in training."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from transformers.modeling_outputs import ImageClassifierOutput

from hf_finetune.models.batchnorm import hold_batchnorm
from hf_finetune.models.classifier import load_classifier
from hf_finetune.models.freezing import FreezeSchedule, freeze
from hf_finetune.models.lora import add_lora
from hf_finetune.training.prefix import CACHED, PrefixError, find_frozen_prefix
from tests.builders import BUILDERS, LABELS
from tests.coloured import weights_of

IMAGES = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))
MORE = torch.randn(3, 3, 32, 32, generator=torch.Generator().manual_seed(1))
# stochastic depth in the frozen part of these is drawn anew at every step
RANDOM = ("swin", "swinv2", "beit", "timm_swin")


def loaded(checkpoint_of: Callable[[str], Path], kind: str) -> torch.nn.Module:
    torch.manual_seed(0)
    model, _ = load_classifier(str(checkpoint_of(kind)), LABELS)
    for module in model.modules():
        if hasattr(module, "drop_prob"):
            module.drop_prob = 0.0
    return model


@pytest.mark.parametrize("kind", BUILDERS)
@pytest.mark.parametrize("which", ["head", "last:1", "last:2"])
def test_the_network_gives_the_same_scores_and_gradients_from_the_boundary_on(kind: str, which: str, checkpoint_of) -> None:
    model = loaded(checkpoint_of, kind)
    freeze(model, FreezeSchedule.parse(which))
    before = weights_of(model)
    if kind == "timm_deit" and which == "head":  # its two heads read two tokens
        with pytest.raises(PrefixError) as error:
            find_frozen_prefix(model, IMAGES)
        assert str(error.value) == "no single place of the network separates what is frozen from what trains."
        return
    prefix = find_frozen_prefix(model, IMAGES)
    assert all(torch.equal(before[name], value) for name, value in weights_of(model).items())
    found = {}
    for inputs in ({"pixel_values": MORE}, {CACHED: prefix.activations(MORE).clone()}):
        if CACHED in inputs:
            prefix.attach()
        model.train().zero_grad()
        output = model(**inputs, labels=torch.tensor([0, 1, 2]))
        output.loss.backward()
        found[next(iter(inputs))] = [output.logits.detach(), *(p.grad.clone() for p in model.parameters() if p.grad is not None)]
    for one, other in zip(*found.values(), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(model.eval()(pixel_values=MORE).logits, prefix.model(**{CACHED: prefix.activations(MORE)}).logits)
    prefix.detach()
    with pytest.raises((TypeError, ValueError, AttributeError)):
        model(**{CACHED: MORE})


def test_a_lora_model_is_cut_below_its_first_adapter(checkpoint_of) -> None:
    model = add_lora(loaded(checkpoint_of, "vit"), rank=2, layers="last:1")
    prefix = find_frozen_prefix(model, IMAGES)
    assert prefix.boundary == "base_model.model.vit.layers.2"
    assert "base_model.model.vit.embeddings.position_embeddings" in dict(prefix.tensors())


@pytest.mark.parametrize("which", ["none", "last:4"])
def test_where_the_first_layers_train_there_is_nothing_to_keep(which: str, checkpoint_of) -> None:
    model = loaded(checkpoint_of, "vit")
    freeze(model, FreezeSchedule.parse(which))
    with pytest.raises(PrefixError) as error:
        find_frozen_prefix(model, IMAGES)
    assert str(error.value) == "the first layers train, so there is nothing to keep."


def test_embeddings_alone_are_not_worth_a_file(tmp_path: Path) -> None:
    BUILDERS["vit"](tmp_path, num_hidden_layers=8)
    model, _ = load_classifier(str(tmp_path), LABELS)
    freeze(model, FreezeSchedule.last(8))
    with pytest.raises(PrefixError) as error:
        find_frozen_prefix(model, IMAGES)
    assert str(error.value) == "nearly all of the network trains, so there is little to keep."


def test_batchnorm_that_follows_the_batch_is_refused_and_its_statistics_stay(checkpoint_of) -> None:
    model = loaded(checkpoint_of, "timm_resnet")
    hold = freeze(model, FreezeSchedule.head())
    hold.remove()
    before = weights_of(model)
    with pytest.raises(PrefixError) as error:
        find_frozen_prefix(model, IMAGES)
    assert str(error.value) == "the frozen part computes differently in training (dropout, or BatchNorm that follows the batch)."
    assert all(torch.equal(before[name], value) for name, value in weights_of(model).items())
    hold_batchnorm(model)
    assert find_frozen_prefix(model, IMAGES).boundary == "timm_model.fc"


@pytest.mark.parametrize("kind", RANDOM)
def test_stochastic_depth_in_the_frozen_part_is_refused(kind: str, checkpoint_of) -> None:
    torch.manual_seed(0)
    model, _ = load_classifier(str(checkpoint_of(kind)), LABELS)
    freeze(model, FreezeSchedule.head())
    state = torch.get_rng_state()
    with pytest.raises(PrefixError) as error:
        find_frozen_prefix(model, IMAGES)
    assert str(error.value) == "the frozen part computes differently in training (dropout, or BatchNorm that follows the batch)."
    assert torch.equal(state, torch.get_rng_state())


class Borrowing(torch.nn.Module):
    """A network whose attention uses the weights of a layer that it never calls, as those of timm's BEiT and Swin v2 do."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = torch.nn.Conv2d(3, 8, 8, stride=8)
        self.attention = torch.nn.ModuleDict({"norm": torch.nn.LayerNorm(8), "qkv": torch.nn.Linear(8, 8)})
        self.attention.forward = lambda x: torch.nn.functional.linear(self.attention["norm"](x), self.attention["qkv"].weight)
        self.head = torch.nn.Linear(8, 3)

    def forward(self, pixel_values: torch.Tensor) -> ImageClassifierOutput:
        return ImageClassifierOutput(logits=self.head(self.attention(self.stem(pixel_values).flatten(2).mean(2))))


def test_weights_that_are_used_without_calling_their_layer_are_trained() -> None:
    torch.manual_seed(0)
    model = Borrowing()
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(name == "attention.qkv.weight")
    assert find_frozen_prefix(model, IMAGES).boundary == "attention"
