"""LoRA: which modules get an adapter, that only adapters and head train, and that merging changes nothing."""

from __future__ import annotations

import copy
import json
import warnings
from pathlib import Path

import pytest
import torch
from peft import AutoPeftModel, PeftModel
from transformers import pipeline

from hf_finetune.errors import ModelError
from hf_finetune.models.classifier import load_classifier, save_classifier
from hf_finetune.models.freezing import head_parameter_names
from hf_finetune.models.lora import add_lora, merge_lora, parse_layers, target_modules
from tests.builders import BUILDERS, LABELS, photo
from tests.models.test_batchnorm import statistics, train

CONVOLUTIONS = {
    "resnet": r"resnet\.encoder\..*convolution",
    "timm_resnet": r"timm_model\.layer\d\.\d\.conv\d",
    "timm_efficientnet": r".*\.conv_pwl?",
    "timm_convnext": r".*\.mlp\.fc\d",
}
LINEAR = ["vit", "deit", "dinov2", "dinov2_registers", "swin", "swinv2", "beit", "convnext", "timm_vit", "timm_deit", "timm_swin"]


def classifier(kind: str, path: Path) -> torch.nn.Module:
    """A tiny classifier whose path is `path`."""
    BUILDERS[kind](path)
    return load_classifier(str(path), LABELS)[0]


def stir(model: PeftModel) -> None:
    """Give all that trains weights that matter, and take care that they do."""
    pixels = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        heads = head_parameter_names(model)
        for name, parameter in model.named_parameters():
            if name in heads:
                parameter.copy_(torch.randn(parameter.shape, generator=generator))
        plain = model(pixels).logits
        for name, parameter in model.named_parameters():
            if "lora_A" in name or "lora_B" in name:
                parameter.copy_(0.1 * torch.randn(parameter.shape, generator=generator))
        assert float((model(pixels).logits - plain).abs().max()) > 1e-3


ATTENTION = {
    "vit": (3, 4, "vit.layers.0.attention.q_proj"),
    "deit": (3, 4, "deit.layers.0.attention.q_proj"),
    "beit": (3, 4, "beit.layers.0.attention.q_proj"),
    "dinov2": (3, 4, "dinov2.encoder.layer.0.attention.q_proj"),
    "dinov2_registers": (3, 4, "dinov2_with_registers.encoder.layer.0.attention.q_proj"),
    "swin": (4, 4, "swin.encoder.layers.0.blocks.0.attention.q_proj"),
    "swinv2": (4, 4, "swinv2.encoder.layers.0.blocks.0.attention.self.query"),
    "timm_vit": (3, 2, "timm_model.blocks.0.attn.qkv"),
    "timm_deit": (2, 2, "timm_model.blocks.0.attn.qkv"),
    "timm_swin": (4, 2, "timm_model.layers.0.blocks.0.attn.qkv"),
}


@pytest.mark.parametrize("kind", ATTENTION)
def test_attention_and_mlp_are_found_in_both_families(kind: str, tmp_path: Path) -> None:
    model = classifier(kind, tmp_path)
    blocks, projections, first = ATTENTION[kind]
    attention = target_modules(model, "attention")
    assert len(attention) == blocks * projections
    assert attention[0] == first
    both = target_modules(model, "attention+mlp")
    assert len(both) == blocks * (projections + 2)
    every = target_modules(model, "all-linear")
    assert set(attention) < set(both) <= set(every)
    assert not any("head" in name or "classifier" in name or "embed" in name for name in every)
    assert not any("position_bias" in name for name in both)


@pytest.mark.parametrize(
    ("layers", "numbers"),
    [("all", [0, 1, 2, 3]), ("last:1", [3]), ("last:3", [1, 2, 3]), ("0,2", [0, 2]), ("1-2", [1, 2]), ("2-3, 0,2", [0, 2, 3])],
)
@pytest.mark.parametrize("kind", ["swin", "timm_swin"])
def test_layers_count_blocks_across_stages(kind: str, layers: str, numbers: list[int], tmp_path: Path) -> None:
    model = classifier(kind, tmp_path)
    names = target_modules(model, "attention", layers)
    found = sorted({(name.split("layers.")[1][0], name.split("blocks.")[1][0]) for name in names})
    assert found == [divmod_text(number) for number in numbers]
    assert parse_layers(layers, 4) == numbers


def divmod_text(number: int) -> tuple[str, str]:
    """Stage and block of a model of two blocks a stage."""
    return str(number // 2), str(number % 2)


@pytest.mark.parametrize(
    ("kind", "settings"),
    [
        *((kind, {}) for kind in [*LINEAR, *CONVOLUTIONS]),
        *((kind, {"dora": True}) for kind in ("vit", "swin", "timm_vit", "timm_resnet")),
        *((kind, {"rslora": True, "dropout": 0.1}) for kind in ("dinov2", "timm_swin", "resnet")),
    ],
)
def test_training_saving_and_merging(kind: str, settings: dict, tmp_path: Path) -> None:
    model = classifier(kind, tmp_path / "base")
    before = {name: value.clone() for name, value in model.state_dict().items()}
    targets = CONVOLUTIONS.get(kind, "attention+mlp")
    adapted = add_lora(model, rank=3, alpha=6, targets=targets, **settings)
    trained = {name for name, parameter in adapted.named_parameters() if parameter.requires_grad}
    assert head_parameter_names(adapted) < trained
    assert all("lora_" in name or name in head_parameter_names(adapted) for name in trained)
    norms = statistics(adapted)
    train(adapted)
    assert all(torch.equal(norms[key], value) for key, value in statistics(adapted).items())
    stir(adapted)

    pixels = torch.randn(2, 3, 32, 32)
    adapted.eval()
    with torch.no_grad():
        expected = adapted(pixels).logits
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        adapted.save_pretrained(tmp_path / "adapter")
    fresh, processor = load_classifier(str(tmp_path / "base"), LABELS)
    loaded = PeftModel.from_pretrained(fresh, str(tmp_path / "adapter")).eval()
    merged = merge_lora(adapted)
    save_classifier(merged, processor, tmp_path / "merged")
    with torch.no_grad():
        assert torch.allclose(loaded(pixels).logits, expected, atol=1e-5)
        assert torch.allclose(merged(pixels).logits, expected, atol=1e-5)
        assert torch.allclose(load_classifier(str(tmp_path / "merged"), LABELS)[0](pixels).logits, expected, atol=1e-5)
    assert merged.state_dict().keys() == before.keys()
    assert pipeline("image-classification", model=str(tmp_path / "merged"), device="cpu")(photo())[0]["label"] in LABELS


def test_merged_models_let_batchnorm_follow_the_data_again(tmp_path: Path) -> None:
    model = merge_lora(add_lora(classifier("timm_resnet", tmp_path), targets=CONVOLUTIONS["timm_resnet"]))
    before = statistics(model)
    model.requires_grad_(True)
    train(model)
    assert not any(torch.equal(before[key], value) for key, value in statistics(model).items())


@pytest.mark.parametrize("kind", ["vit", "timm_vit"])
def test_the_adapter_knows_its_base(kind: str, tmp_path: Path) -> None:
    model = classifier(kind, tmp_path / "base")
    adapted = add_lora(model, layers="last:1").eval()
    stir(adapted)
    adapted.save_pretrained(tmp_path / "adapter")
    settings = json.loads((tmp_path / "adapter" / "adapter_config.json").read_text())
    assert settings["base_model_name_or_path"] == str(tmp_path / "base")
    loaded = AutoPeftModel.from_pretrained(str(tmp_path / "adapter"), num_labels=3, ignore_mismatched_sizes=True).eval()
    pixels = torch.randn(2, 3, 32, 32)
    assert torch.allclose(loaded(pixels).logits, adapted(pixels).logits, atol=1e-5)


def test_saving_an_adapter_of_a_hub_model_asks_no_network(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = classifier("vit", tmp_path / "base")
    model.name_or_path = model.config.name_or_path = "google/vit-base-patch16-224-in21k"
    adapted = add_lora(model)
    asked: list[object] = []
    monkeypatch.setattr("peft.utils.save_and_load.check_file_exists_on_hf_hub", lambda *names, **_: asked.append(names))
    adapted.save_pretrained(tmp_path / "adapter")
    assert asked == []
    assert (tmp_path / "adapter" / "adapter_model.safetensors").is_file()


USE = "Use attention, attention+mlp, all-linear, or a regular expression that matches whole names such as"
VIT_NAMES = (
    "vit.embeddings.patch_embeddings.projection, vit.layers.0.attention.q_proj, vit.layers.0.attention.k_proj, "
    "vit.layers.0.attention.v_proj, vit.layers.0.attention.o_proj, vit.layers.0.mlp.fc1"
)
RESNET = (
    "matches no module of TimmWrapperForImageClassification (resnet10t). " + USE + " timm_model.conv1.0, timm_model.layer1.0.conv1, "
    "timm_model.layer1.0.downsample.1."
)
MISTAKES = [
    ("vit", {"targets": "atention"}, f"lora_targets 'atention' matches no module of ViTForImageClassification. {USE} {VIT_NAMES}. "
     "Did you mean 'attention'?"),
    ("vit", {"targets": "query"}, f"lora_targets 'query' matches no module of ViTForImageClassification. {USE} {VIT_NAMES}."),
    ("vit", {"targets": "classifier"}, f"lora_targets 'classifier' matches no module of ViTForImageClassification. {USE} {VIT_NAMES}."),
    ("timm_resnet", {"targets": "attention"}, "lora_targets 'attention' " + RESNET),
    ("timm_resnet", {"targets": "all-linear"}, "lora_targets 'all-linear' " + RESNET),
    ("vit", {"targets": "(q_proj"}, "lora_targets '(q_proj' is neither one of attention, attention+mlp, all-linear nor a regular "
     "expression (missing ), unterminated subpattern at position 0)."),
    ("timm_efficientnet", {"targets": r".*conv_.*"}, "lora_targets '.*conv_.*' matches 2 grouped convolutions "
     "(timm_model.blocks.3.0.conv_dw, timm_model.blocks.4.0.conv_dw), whose adapters cannot be "
     "merged; narrow the expression to the others."),
    ("vit", {"layers": "last:4"}, "lora_layers 'last:4' asks for the last 4 layers; the model has 3."),
    ("vit", {"layers": "last:0"}, "lora_layers 'last:0' asks for the last 0 layers; the model has 3."),
    ("vit", {"layers": "0,3"}, "lora_layers '0,3' names layer 3; the model has 3 layers, numbered 0 to 2."),
    ("vit", {"layers": "1-7"}, "lora_layers '1-7' names layer 7; the model has 3 layers, numbered 0 to 2."),
    ("vit", {"layers": "2-1"}, "lora_layers '2-1' cannot be read: use all, last:N, or numbers and ranges such as 6-11 or 0,2,4."),
    ("vit", {"layers": "first"}, "lora_layers 'first' cannot be read: use all, last:N, or numbers and ranges such as 6-11 or 0,2,4."),
    ("vit", {"targets": r".*layers\.2\..*fc1", "layers": "0-1"}, r"lora_layers '0-1' leaves none of the 1 modules that lora_targets "
     r"'.*layers\\.2\\..*fc1' matches; they are in layers 2."),
    ("vit", {"rank": 0}, "lora_rank is 0; it must be at least 1."),
    ("vit", {"alpha": 0}, "lora_alpha is 0; it must be above 0."),
    ("vit", {"dropout": 1.0}, "lora_dropout is 1.0; it must be at least 0 and below 1."),
]  # fmt: skip


@pytest.mark.parametrize(("kind", "settings", "message"), MISTAKES)
def test_mistakes_are_told(kind: str, settings: dict, message: str, tmp_path: Path) -> None:
    model = classifier(kind, tmp_path)
    with pytest.raises(ModelError) as error:
        add_lora(model, **settings)
    assert str(error.value) == message


def test_a_diverged_adapter_is_not_merged(tmp_path: Path) -> None:
    adapted = add_lora(classifier("vit", tmp_path))
    with torch.no_grad():
        next(parameter for name, parameter in adapted.named_parameters() if "lora_B" in name).fill_(float("nan"))
    with pytest.raises(ValueError, match="NaN") as quoted:
        copy.deepcopy(adapted).merge_and_unload(safe_merge=True)
    with pytest.raises(ModelError) as error:
        merge_lora(adapted)
    assert str(error.value) == f"The adapter cannot be merged: {quoted.value} The training has diverged; lower the learning rate."


@pytest.mark.real
def test_real_dinov2_merges(real: Path) -> None:
    model, _ = load_classifier(str(real / "models" / "dinov2-small-saliency"), LABELS)
    adapted = add_lora(model, targets="attention+mlp", layers="6-11", dora=True)
    stir(adapted)
    pixels = torch.randn(1, 3, 224, 224)
    adapted.eval()
    with torch.no_grad():
        expected = adapted(pixels).logits
        assert torch.allclose(merge_lora(adapted)(pixels).logits, expected, atol=1e-4)
