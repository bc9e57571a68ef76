"""`load_classifier` and `save_classifier` on tiny models of both families, and on the real checkpoints where they are."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import timm
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from transformers import AutoConfig, AutoImageProcessor, BertConfig, pipeline

from hf_finetune.errors import HubError, ModelError
from hf_finetune.models.classifier import load_classifier, save_classifier
from hf_finetune.models.names import block_names, head_names
from hf_finetune.models.processors import output_size
from tests.builders import BUILDERS, HF_BUILDERS, LABELS, TIMM_BUILDERS, build_timm_dir, build_vit_dir, draw_head, photo, scores_of

FIVE = ["ant", "bee", "cat", "dog", "owl"]
HEADS = {
    "timm_vit": ["timm_model.head"],
    "timm_deit": ["timm_model.head", "timm_model.head_dist"],
    "timm_swin": ["timm_model.head.fc"],
    "timm_resnet": ["timm_model.fc"],
    "timm_convnext": ["timm_model.head.fc"],
    "timm_efficientnet": ["timm_model.classifier"],
}
BLOCKS = {"swin": 4, "swinv2": 4, "resnet": 4, "timm_deit": 2, "timm_swin": 4, "timm_resnet": 4, "timm_convnext": 5, "timm_efficientnet": 5}


@pytest.mark.parametrize("kind", BUILDERS)
def test_loads_saves_and_runs_in_a_pipeline(kind: str, tmp_path: Path) -> None:
    BUILDERS[kind](tmp_path / "base")
    model, processor = load_classifier(str(tmp_path / "base"), LABELS)
    config = model.config
    assert config.num_labels == 3
    assert config.id2label == dict(enumerate(LABELS))
    assert config.label2id == {"cat": 0, "dog": 1, "owl": 2}
    assert config.problem_type == "single_label_classification"
    assert {parameter.dtype for parameter in model.parameters()} == {torch.float32}
    assert not model.training
    assert head_names(model) == HEADS.get(kind, ["classifier"])
    assert len(block_names(model)) == BLOCKS.get(kind, 3)

    draw_head(model)
    assert save_classifier(model, processor, tmp_path / "saved") == tmp_path / "saved"
    classifier = pipeline("image-classification", model=str(tmp_path / "saved"), device="cpu")
    for seed, size in enumerate([(61, 40), (40, 61), (200, 50), (32, 32)]):
        picture = photo(seed, size)
        with torch.no_grad():
            expected = model(**processor(picture, return_tensors="pt")).logits.softmax(-1)[0]
        got = scores_of(classifier, picture)
        assert [got[label] for label in LABELS] == pytest.approx(expected.tolist(), abs=1e-5)

    again, _ = load_classifier(str(tmp_path / "saved"), LABELS)
    assert all(torch.equal(value, again.state_dict()[key]) for key, value in model.state_dict().items())
    assert again.config.problem_type == "single_label_classification"


@pytest.mark.parametrize("kind", BUILDERS)
def test_backbone_is_the_file_and_the_head_is_small(kind: str, tmp_path: Path) -> None:
    BUILDERS[kind](tmp_path / "base")
    model, _ = load_classifier(str(tmp_path / "base"), LABELS)
    heads = tuple(f"{head}." for head in head_names(model))
    backbone = [value for key, value in model.state_dict().items() if not key.startswith(heads) and value.is_floating_point()]
    stored = [value for key, value in load_file(tmp_path / "base" / "model.safetensors").items() if value.is_floating_point()]
    left = [round(float(value.double().sum()), 4) for value in stored]
    for value in backbone:
        left.remove(round(float(value.double().sum()), 4))
    weights = torch.cat([p.flatten() for name, p in model.named_parameters() if name.startswith(heads) and p.ndim > 1])
    assert 0.001 < float(weights.detach().std()) < 0.003
    assert torch.isfinite(weights).all()


def test_timm_weights_and_logits_are_those_of_timm(tmp_path: Path) -> None:
    for kind, build in TIMM_BUILDERS.items():
        build(tmp_path / kind)
        settings = json.loads((tmp_path / kind / "config.json").read_text())
        own = timm.create_model(settings["architecture"], num_classes=5, **settings.get("model_args", {})).eval()
        own.load_state_dict(load_file(tmp_path / kind / "model.safetensors"))
        settings["label_names"] = FIVE
        (tmp_path / kind / "config.json").write_text(json.dumps(settings))
        model, _ = load_classifier(str(tmp_path / kind), FIVE)
        pixels = torch.randn(2, 3, 32, 32)
        assert torch.allclose(model(pixels).logits, own(pixels), atol=1e-5), kind


def test_other_labels_of_the_same_number_begin_a_new_head(tmp_path: Path) -> None:
    build_vit_dir(tmp_path / "base")
    notices: list[str] = []
    model, processor = load_classifier(str(tmp_path / "base"), FIVE, notices=notices)
    assert f"The head of {tmp_path / 'base'} was trained on 5 classes with other names, so it begins anew." in notices
    save_classifier(model, processor, tmp_path / "saved")
    notices.clear()
    load_classifier(str(tmp_path / "saved"), FIVE, notices=notices)
    assert notices == []
    load_classifier(str(tmp_path / "saved"), FIVE[::-1], notices=notices)
    assert notices == [f"The head of {tmp_path / 'saved'} was trained on 5 classes with other names, so it begins anew."]


def test_a_distilled_deit_is_loaded_as_the_class_that_trains_on_labels(tmp_path: Path) -> None:
    HF_BUILDERS["deit"](tmp_path)
    model, _ = load_classifier(str(tmp_path), LABELS)
    assert type(model).__name__ == "DeiTForImageClassification"
    assert model(torch.zeros(2, 3, 32, 32), labels=torch.tensor([0, 2])).loss.isfinite()


def test_timm_save_for_hf_layout_loads(tmp_path: Path) -> None:
    net = timm.create_model("test_vit", num_classes=5)
    timm.models.save_for_hf(net, tmp_path, model_args={"num_classes": 5}, safe_serialization=True)
    assert json.loads((tmp_path / "config.json").read_text())["model_args"]["num_classes"] == 5
    model, processor = load_classifier(str(tmp_path), LABELS)
    assert torch.equal(model.timm_model.blocks[0].attn.qkv.weight, net.blocks[0].attn.qkv.weight)
    assert output_size(processor) == (160, 160)


def test_a_timm_directory_without_input_spec_takes_that_of_timm(tmp_path: Path) -> None:
    build_timm_dir(tmp_path / "base", "test_efficientnet")
    (tmp_path / "base" / "config.json").write_text(
        json.dumps({"model_type": "timm_wrapper", "architecture": "test_efficientnet", "num_classes": 5})
    )
    notices: list[str] = []
    model, processor = load_classifier(str(tmp_path / "base"), LABELS, notices=notices)
    sentence = (
        f"The config.json of {tmp_path / 'base'} does not say how to prepare pictures; it is done as timm says for test_efficientnet."
    )
    assert notices == [sentence]
    save_classifier(model, processor, tmp_path / "saved")
    assert json.loads((tmp_path / "saved" / "config.json").read_text())["pretrained_cfg"]["input_size"] == [3, 160, 160]


def _spoil(path: Path, how: str) -> None:
    """Damage the directory of a tiny ViT in one way."""
    config, weights = path / "config.json", path / "model.safetensors"
    if how == "no config":
        config.unlink()
    elif how == "no weights":
        weights.unlink()
    elif how == "adapter":
        config.rename(path / "adapter_config.json")
    elif how == "run":
        (path / "model").mkdir()
        config.rename(path / "model" / "config.json")
    elif how == "truncated":
        weights.write_bytes(weights.read_bytes()[:1000])
    elif how == "no processor":
        (path / "preprocessor_config.json").unlink()
    elif how == "broken processor":
        (path / "preprocessor_config.json").write_text("{")
    elif how == "not json":
        config.write_text("{")
    elif how == "bert":
        BertConfig().save_pretrained(path)
    elif how == "unknown type":
        config.write_text(json.dumps({"model_type": "visiontron"}))
    else:
        settings = json.loads(config.read_text())
        settings |= {"wider": {"hidden_size": 64}, "deeper": {"num_hidden_layers": 4}, "flatter": {"num_hidden_layers": 2}}[how]
        config.write_text(json.dumps(settings))


SUPPORTED = (
    "Supported are ViT, DeiT, DINOv2, Swin, ConvNeXt, ResNet, BEiT and the other image classifiers of transformers, and every timm model."
)
ADVICE = "Check that config.json and the weights come from the same checkpoint."
SPOILED = {
    "no config": "The model directory '{}' holds no config.json. A model directory holds config.json, model.safetensors and, unless it is "
    "a timm model, preprocessor_config.json.",
    "no weights": "The model directory '{}' holds a config.json but no weights; expected one of model.safetensors, "
    "model.safetensors.index.json, pytorch_model.bin, pytorch_model.bin.index.json.",
    "adapter": "The model directory '{}' holds no config.json. It holds a PEFT adapter; give the merged model beside it, or the adapter's "
    "base model.",
    "run": "The model directory '{}' holds no config.json. Did you mean '{}/model'?",
    "bert": "The model '{}' is a 'bert' model, which does not classify images. " + SUPPORTED,
    "wider": "The weights of '{}' do not fit its config.json: 51 weights with other shapes (vit.embeddings.cls_token 1×1×32 instead of "
    "1×1×64, vit.embeddings.patch_embeddings.projection.bias 32 instead of 64, vit.embeddings.patch_embeddings.projection.weight "
    "32×3×8×8 instead of 64×3×8×8 and 48 more). " + ADVICE,
    "deeper": "The weights of '{}' do not fit its config.json: 16 weights missing (vit.layers.3.attention.k_proj.bias, "
    "vit.layers.3.attention.k_proj.weight, vit.layers.3.attention.o_proj.bias and 13 more). " + ADVICE,
    "flatter": "The weights of '{}' do not fit its config.json: 16 weights of layers that the configuration does not have "
    "(vit.layers.2.attention.k_proj.bias, vit.layers.2.attention.k_proj.weight, vit.layers.2.attention.o_proj.bias and 13 more). " + ADVICE,
    "no processor": "The model '{}' has no preprocessor_config.json, so its image size, mean and standard deviation are unknown; copy it "
    "from the checkpoint that the model was made from.",
}
QUOTING = {  # the words of transformers and safetensors, which change from release to release, stand for '[...]'
    "truncated": "The weights of '{}' cannot be loaded: [...].",
    "broken processor": "The model '{}' has no preprocessor_config.json that can be read ([...]), so its image size, mean and standard "
    "deviation are unknown; copy it from the checkpoint that the model was made from.",
    "not json": "The config.json of '{}' cannot be read ([...]). " + SUPPORTED,
    "unknown type": "The config.json of '{}' cannot be read ([...]). " + SUPPORTED,
}


def _quoted(path: Path, how: str) -> str:
    """What the library itself says of a directory that was spoiled."""
    with pytest.raises((OSError, ValueError, SafetensorError)) as error:
        if how == "truncated":
            load_file(path / "model.safetensors")
        elif how == "broken processor":
            AutoImageProcessor.from_pretrained(path)
        else:
            AutoConfig.from_pretrained(path)
    return str(error.value).splitlines()[0].rstrip(".:")


@pytest.mark.parametrize("how", [*SPOILED, *QUOTING])
def test_directories_that_hold_no_usable_model(how: str, tmp_path: Path) -> None:
    build_vit_dir(tmp_path)
    _spoil(tmp_path, how)
    with pytest.raises(ModelError) as error:
        load_classifier(str(tmp_path), LABELS)
    expected = SPOILED[how] if how in SPOILED else QUOTING[how].replace("[...]", _quoted(tmp_path, how))
    assert str(error.value) == expected.replace("{}", str(tmp_path))


def test_a_timm_directory_with_other_shapes(tmp_path: Path) -> None:
    TIMM_BUILDERS["timm_resnet"](tmp_path)
    weights = load_file(tmp_path / "model.safetensors")
    del weights["layer1.0.conv1.weight"]
    weights["layer2.0.bn1.weight"] = torch.ones(5)
    save_file(weights, tmp_path / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ModelError) as error:
        load_classifier(str(tmp_path), LABELS)
    assert str(error.value) == (
        f"The weights of '{tmp_path}' do not fit its config.json: 1 weights with other shapes (timm_model.layer2.0.bn1.weight 5 instead of "
        f"8); 1 weights missing (timm_model.layer1.0.conv1.weight). {ADVICE}"
    )


NAMES = [
    ("./no/such/folder", "The model directory './no/such/folder' does not exist."),
    ("runs/demo/model", "The model directory 'runs/demo/model' does not exist."),
    (__file__, f"The model {__file__!r} is a file; give the directory that holds config.json and model.safetensors."),
]


@pytest.mark.parametrize(("name", "message"), NAMES)
def test_names_that_are_no_model(name: str, message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)  # where no earlier run left a folder of that name
    with pytest.raises(ModelError) as error:
        load_classifier(name, LABELS)
    assert str(error.value) == message


WAYS_OUT = "use --preset demo (drawn pets and a tiny checkpoint, no network), --dataset PATH or --model PATH"


@pytest.mark.parametrize(("offline", "state"), [(True, "HF_HUB_OFFLINE is set"), (False, "The Hub (http://127.0.0.1:9) cannot be reached")])
def test_a_hub_id_that_is_not_cached_says_so_at_once(offline: bool, state: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1" if offline else "0")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", offline)
    monkeypatch.setattr("hf_finetune.hub_access.can_connect", lambda address: False)
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    with pytest.raises(HubError) as error:
        load_classifier("nobody/no-such-model", LABELS)
    assert str(error.value) == (
        f"{state} and the model 'nobody/no-such-model' is not in the local cache; {WAYS_OUT}. "
        "There is no directory 'nobody/no-such-model' either."
    )


def test_an_unknown_name_gets_the_nearest_embedded_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("tiny_resnet", "tiny_vit"):
        build_vit_dir(tmp_path / name)
    monkeypatch.setattr("hf_finetune.models.sources._EMBEDDED", tmp_path)
    with pytest.raises(ModelError) as error:
        load_classifier("tiny_vitt", LABELS)
    assert str(error.value) == (
        "The model 'tiny_vitt' is neither an embedded name (tiny_resnet, tiny_vit), nor a directory, nor a Hub id such as "
        "google/vit-base-patch16-224-in21k. Did you mean 'tiny_vit'?"
    )
    model, _ = load_classifier("tiny_vit", LABELS)
    assert model.name_or_path == str(tmp_path / "tiny_vit")
    with pytest.raises(ModelError) as error:
        load_classifier("tiny_vit", LABELS, revision="main")
    assert str(error.value) == "The revision 'main' has no meaning for 'tiny_vit', which is not on the Hub; leave out model_revision."


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        (["cat"], "A classifier needs at least two labels; got 1 (cat)."),
        (["cat", "dog", "cat"], "Label names must differ from each other; cat occurs more than once."),
    ],
)
def test_labels_that_cannot_be(labels: list[str], message: str, tmp_path: Path) -> None:
    with pytest.raises(ModelError) as error:
        load_classifier(str(tmp_path), labels)
    assert str(error.value) == message


def test_only_plain_models_are_saved(tmp_path: Path) -> None:
    with pytest.raises(ModelError) as error:
        save_classifier(torch.nn.Linear(2, 2), None, tmp_path / "saved")  # type: ignore[arg-type]
    assert str(error.value) == "A Linear cannot be saved as a classifier; merge its adapter first with merge_lora(model)."
    assert not (tmp_path / "saved").exists()


def test_a_process_without_this_package_runs_what_was_saved(tmp_path: Path) -> None:
    expected = []
    for kind in ("vit", "timm_resnet"):
        BUILDERS[kind](tmp_path / "base" / kind)
        model, processor = load_classifier(str(tmp_path / "base" / kind), LABELS)
        draw_head(model)
        save_classifier(model, processor, tmp_path / kind)
        with torch.no_grad():
            expected.append(model(**processor(photo(), return_tensors="pt")).logits.softmax(-1)[0].tolist())
    photo().save(tmp_path / "photo.png")
    code = (
        "import json, sys\nfrom transformers import pipeline\n"
        "runs = [pipeline('image-classification', model=kind, device='cpu')('photo.png') for kind in ('vit', 'timm_resnet')]\n"
        "assert not [name for name in sys.modules if name.startswith('hf_finetune')]\n"
        "print(json.dumps([{row['label']: row['score'] for row in rows} for rows in runs]))"
    )
    result = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=True)
    for got, scores in zip(json.loads(result.stdout.splitlines()[-1]), expected, strict=True):
        assert [got[label] for label in LABELS] == pytest.approx(scores, abs=1e-5)


def test_local_loads_ask_no_network(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    asked: list[str] = []
    monkeypatch.setattr("socket.getaddrinfo", lambda host, *_, **__: asked.append(host) or [])
    for kind in ("vit", "timm_vit"):
        BUILDERS[kind](tmp_path / kind)
        model, processor = load_classifier(str(tmp_path / kind), LABELS)
        save_classifier(model, processor, tmp_path / f"{kind}-saved")
    assert asked == []


@pytest.mark.real
def test_real_dinov2(real: Path, tmp_path: Path) -> None:
    base = real / "models" / "dinov2-small-saliency"
    notices: list[str] = []
    model, processor = load_classifier(str(base), LABELS, notices=notices)
    assert notices == []
    assert model.dtype == torch.float32
    assert output_size(processor) == (224, 224)
    assert len(block_names(model)) == 12
    stored = sum(float(value.double().sum()) for value in load_file(base / "model.safetensors").values())
    loaded = sum(float(value.double().sum()) for key, value in model.state_dict().items() if not key.startswith("classifier"))
    assert loaded == pytest.approx(stored, abs=1e-3)
    save_classifier(model, processor, tmp_path)
    got = scores_of(pipeline("image-classification", model=str(tmp_path), device="cpu"), photo(0, (300, 260)))
    with torch.no_grad():
        expected = model(**processor(photo(0, (300, 260)), return_tensors="pt")).logits.softmax(-1)[0].tolist()
    assert [got[label] for label in LABELS] == pytest.approx(expected, abs=1e-5)


@pytest.mark.real
def test_real_efficientnet(real: Path, tmp_path: Path) -> None:
    base = real / "models" / "tf_efficientnet_lite0"
    model, processor = load_classifier(str(base), LABELS)
    weights = model.timm_model.state_dict()
    for key, value in load_file(base / "model.safetensors").items():
        assert key.startswith("classifier.") or torch.equal(value, weights[key])
    save_classifier(model, processor, tmp_path)
    assert timm.create_model(f"local-dir:{tmp_path}", pretrained=True).num_classes == 3
    got = scores_of(pipeline("image-classification", model=str(tmp_path), device="cpu"), photo(0, (300, 260)))
    with torch.no_grad():
        expected = model(**processor(photo(0, (300, 260)), return_tensors="pt")).logits.softmax(-1)[0].tolist()
    assert [got[label] for label in LABELS] == pytest.approx(expected, abs=1e-5)
