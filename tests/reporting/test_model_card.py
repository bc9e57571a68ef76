"""The model card of a run: its whole text once, its metadata for many kinds of runs, and snippets that run."""

import math
import re
import textwrap
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from huggingface_hub import ModelCard
from peft import LoraConfig, get_peft_model
from PIL import Image
from transformers import AutoModelForImageClassification, ViTConfig, ViTForImageClassification, ViTImageProcessor

from hf_finetune.errors import DataError
from hf_finetune.reporting.markdown import markdown_text
from hf_finetune.reporting.model_card import build_card, write_card
from tests.finished_run import DATASET_PATH, HUB_DATASET, HUB_MODEL, run_metrics, write_finished_run

SNAPSHOT = """\
---
library_name: transformers
metrics:
- accuracy
- f1
pipeline_tag: image-classification
tags:
- image-classification
- vision
- hf-finetune
model-index:
- name: tiny_vit fine-tuned on drawn_pets
  results:
  - task:
      type: image-classification
      name: Image Classification
    dataset:
      name: drawn_pets
      type: drawn_pets
      split: test
    metrics:
    - type: accuracy
      value: 0.8666666666666667
      name: Accuracy
    - type: f1
      value: 0.882456
      name: Macro F1
      args:
        average: macro
    - type: balanced_accuracy
      value: 0.8666666666666667
      name: Balanced accuracy
    - type: expected_calibration_error
      value: 0.0512
      name: Calibration error
---

# tiny_vit fine-tuned on drawn_pets

An image classifier with 3 classes: tiny_vit, fine-tuned on drawn_pets.

## Results

On the test split (30 images), which was scored once, after the choice of the checkpoint on validation.

| Metric | Value | 95 % interval (Wilson) |
| --- | ---: | ---: |
| Accuracy | 0.8667 | 0.7032 to 0.9469 |
| Macro F1 | 0.8825 |  |
| Balanced accuracy | 0.8667 |  |
| Calibration error | 0.0512 |  |

## How to use

```python
from transformers import pipeline

classifier = pipeline("image-classification", model="USER/REPOSITORY")
print(classifier("photo.jpg", top_k=5))
```

## Results by class

| Class | Precision | Recall | F1 | Images |
| --- | ---: | ---: | ---: | ---: |
| Abyssinian | 0.900 | 0.900 | 0.900 | 10 |
| american_bulldog | 0.800 | 0.800 | 0.800 | 10 |
| cat\\|dog | 1.000 | 0.900 | 0.947 | 10 |

## Training

Images: 100 train, 20 validation, 30 test.

Trained parameters: 1,500 of 120,000 (1.25%).

Training time: 81 s.

| Setting | Value |
| --- | --- |
| `dataset` | drawn_pets |
| `model` | tiny_vit |
| `adapter` | none |
| `num_train_epochs` | 5 |
| `learning_rate` | 0.001 |
| `weight_decay` | 0 |
| `seed` | 42 |

## Versions

| Name | Value |
| --- | --- |
| python | 3.11.9 |
| torch | 2.14.1 |
| hf_finetune | 0.1.0 |
| device | cpu |
| seed | 42 |

## Limits

The figures come from one run with seed 42 and hold for photos like those of the test split; the interval covers the choice of test \
images, not of the seed. The model knows its classes only: it gives every picture one of them, also a picture that shows none.
"""


def card_of(directory: Path, **sections: Any) -> ModelCard:
    return build_card(write_finished_run(directory, adapter=bool(sections.pop("adapter", False)), metrics=run_metrics(**sections)))


def metadata_of(card: ModelCard) -> dict[str, Any]:
    """Read the metadata as the Hub does, with a loader that makes nothing but plain values."""
    head = str(card).split("---\n")[1]
    assert not re.search(r"[:-] !!", head)
    return yaml.safe_load(head)


def test_the_whole_card_of_a_small_run(tmp_path: Path) -> None:
    assert str(card_of(tmp_path)) == SNAPSHOT


def test_the_card_survives_loading_and_saving(tmp_path: Path) -> None:
    text = str(card_of(tmp_path, model=HUB_MODEL, dataset=HUB_DATASET))

    again = ModelCard(text)

    assert str(again) == text
    assert again.data.model_name == "vit-base-patch16-224-in21k fine-tuned on oxford_pets"
    assert {result.metric_type: result.metric_value for result in again.data.eval_results or []} == {
        "accuracy": 26 / 30,
        "f1": 0.882456,
        "balanced_accuracy": 26 / 30,
        "expected_calibration_error": 0.0512,
    }
    assert {(result.dataset_type, result.dataset_split) for result in again.data.eval_results or []} == {("timm/oxford-iiit-pet", "test")}


def test_metadata_of_an_adapter_on_a_hub_model(tmp_path: Path) -> None:
    metadata = metadata_of(card_of(tmp_path, model=HUB_MODEL, dataset=HUB_DATASET))

    assert metadata["license"] == "apache-2.0"
    assert metadata["base_model"] == "google/vit-base-patch16-224-in21k"
    assert metadata["datasets"] == ["timm/oxford-iiit-pet"]
    assert metadata["library_name"] == "transformers"
    assert metadata["pipeline_tag"] == "image-classification"
    assert metadata["tags"] == ["image-classification", "vision", "hf-finetune", "peft", "lora"]


def test_what_is_unknown_is_left_out(tmp_path: Path) -> None:
    metadata = metadata_of(card_of(tmp_path))

    assert metadata.keys() == {"library_name", "metrics", "pipeline_tag", "tags", "model-index"}


def test_a_license_that_is_no_id_is_named_beside_other(tmp_path: Path) -> None:
    metadata = metadata_of(card_of(tmp_path, model=HUB_MODEL | {"license": "Model License (v2)"}))

    assert metadata["license"] == "other"
    assert metadata["license_name"] == "model-license-v2"


def test_a_timm_model_is_tagged(tmp_path: Path) -> None:
    name = "timm/resnet18.a1_in1k"
    metadata = metadata_of(card_of(tmp_path, model={"name": name, "base_model": name, "license": None, "adapter": None}))
    assert "timm" in metadata["tags"]


def test_figures_that_are_no_numbers_are_left_out(tmp_path: Path) -> None:
    test = run_metrics()["test"] | {"ece": math.nan, "macro_f1": None}

    card = card_of(tmp_path, test=test)

    assert [metric["type"] for metric in metadata_of(card)["model-index"][0]["results"][0]["metrics"]] == ["accuracy", "balanced_accuracy"]
    assert "nan" not in str(card).lower()


def test_top_5_counts_from_six_classes_on(tmp_path: Path) -> None:
    row = {"precision": 0.5, "recall": 0.5, "f1": 0.5, "support": 5}
    test = run_metrics()["test"] | {"top5_accuracy": 0.9, "per_class": {f"breed {number}": row for number in range(6)}}
    assert "| Top-5 accuracy | 0.9000 | 0.7438 to 0.9654 |" in str(card_of(tmp_path, test=test))


def test_many_classes_are_cut_to_the_best_and_the_worst(tmp_path: Path) -> None:
    per_class = {f"flower {n:03d}": {"precision": n / 101, "recall": n / 101, "f1": n / 101, "support": 60} for n in range(102)}

    text = str(card_of(tmp_path, test=run_metrics()["test"] | {"per_class": per_class}))

    rows = re.findall(r"^\| (flower \d+) ", text, flags=re.MULTILINE)
    assert rows == [f"flower {n:03d}" for n in [*range(101, 81, -1), *range(19, -1, -1)]]
    assert "The 20 best and the 20 worst of 102 classes by F1; all of them are in `metrics.json`." in text


HOSTILE = [
    "<script>alert(1)</script>",
    "a | b",
    "two\nlines\r\n---\nlicense: mit",
    "`code` **bold** [x](http://evil)",
    "back\\slash_ _it_ ~~s~~ $m$",
    "!!python/object:os.system",
    "{{ jinja }} {% raw %}",
    "الكلب 🐕",
    "'\": #&*",
]


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_names(tmp_path: Path, name: str) -> None:
    row = {"precision": 0.5, "recall": 0.5, "f1": 0.5, "support": 5}
    card = card_of(
        tmp_path,
        test=run_metrics()["test"] | {"per_class": {name: row, "fine": row}},
        dataset={"name": name.replace("/", " "), "hub_id": None, "label_names": [name, "fine"], "splits": {"test": 10}},
        notices=[f"Left out {name}."],
    )

    body = str(card).split("---\n", 2)[2]
    assert str(ModelCard(str(card))) == str(card)
    assert metadata_of(card)["model-index"][0]["results"][0]["dataset"]["split"] == "test"
    assert "license" not in metadata_of(card)
    assert "<" not in body
    table = [line for line in body.splitlines() if line.endswith(" | 0.500 | 0.500 | 0.500 | 5 |")]
    assert table == [f"| {markdown_text(name)} | 0.500 | 0.500 | 0.500 | 5 |", "| fine | 0.500 | 0.500 | 0.500 | 5 |"]
    assert all(len(re.findall(r"(?<!\\)\|", line)) == 6 for line in table)
    assert f"- Left out {markdown_text(name)}.\n" in body


def test_no_local_path_in_the_card(tmp_path: Path) -> None:
    metrics = run_metrics(
        model={"name": "/home/ann/models/vit small", "base_model": None, "license": None, "adapter": {"type": "lora"}},
        dataset=run_metrics()["dataset"] | {"name": DATASET_PATH},
        notices=[f"Left out 2 of 30 images of {DATASET_PATH}: /home/ann/x/1.jpg, /home/ann/x/2.jpg."],
    )
    run = write_finished_run(tmp_path, metrics=metrics, dataset=DATASET_PATH, model="/home/ann/models/vit small")

    text = str(build_card(run))

    assert "/home" not in text
    assert "private place" not in text
    assert "# vit small fine-tuned on my pets" in text
    assert "- Left out 2 of 30 images of my pets: 1.jpg, 2.jpg." in text
    assert "| `dataset` | my pets |" in text


def test_a_relative_folder_is_not_taken_for_a_hub_id(tmp_path: Path) -> None:
    dataset = run_metrics()["dataset"] | {"name": "data/pets"}
    text = str(build_card(write_finished_run(tmp_path, metrics=run_metrics(dataset=dataset), dataset="data/pets")))
    assert "data/pets" not in text
    assert "tiny_vit fine-tuned on pets" in text


def test_settings_of_the_adapter_are_shown_only_with_one(tmp_path: Path) -> None:
    assert "`lora_rank`" not in str(build_card(write_finished_run(tmp_path / "full")))
    assert "| `lora_rank` | 8 |" in str(build_card(write_finished_run(tmp_path / "lora", adapter=True)))


def test_an_adapter_on_a_local_checkpoint_says_where_it_belongs(tmp_path: Path) -> None:
    text = str(build_card(write_finished_run(tmp_path, adapter=True)))
    assert "The folder `adapter` holds the adapter alone, for PEFT on top of the checkpoint tiny_vit, which is not on the Hub." in text


def test_a_run_with_little_recorded_still_has_a_card(tmp_path: Path) -> None:
    (tmp_path / "metrics.json").write_text('{"test": {"accuracy": 0.5}}')
    (tmp_path / "config.yaml").write_text("seed: 1")

    text = str(build_card(tmp_path))

    assert "| Accuracy | 0.5000 |  |" in text
    assert "one run and" in text


def test_the_card_is_written_whole_or_not_at_all(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = write_finished_run(tmp_path)
    (run / "README.md").write_text("old")

    def no_space(*_: object) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr("os.replace", no_space)
        with pytest.raises(OSError, match="No space"):
            write_card(run)
    assert (run / "README.md").read_text() == "old"

    assert write_card(run) == run / "README.md"
    assert (run / "README.md").read_bytes() == SNAPSHOT.encode()
    assert not list(run.glob(".README*"))


@pytest.mark.parametrize("missing", ["metrics.json", "config.yaml"])
def test_an_unfinished_run(tmp_path: Path, missing: str) -> None:
    run = write_finished_run(tmp_path)
    (run / missing).unlink()
    with pytest.raises(DataError) as caught:
        build_card(run)
    assert str(caught.value) == f"{str(run)!r} is not a finished run: {missing} is missing. Run the training to its end."


def test_the_snippets_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """The pipeline and the adapter snippet give the same answer, with folders in place of the repository and the base model."""
    torch.manual_seed(0)
    config = ViTConfig(hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16, image_size=16, patch_size=8)
    ViTForImageClassification(config).save_pretrained(tmp_path / "base")
    base = AutoModelForImageClassification.from_pretrained(tmp_path / "base", num_labels=3, ignore_mismatched_sizes=True)
    adapted = get_peft_model(base, LoraConfig(target_modules=["q_proj", "v_proj"], modules_to_save=["classifier"], init_lora_weights=False))
    repository = tmp_path / "repository"
    adapted.save_pretrained(repository / "adapter")
    adapted.merge_and_unload().save_pretrained(repository)
    ViTImageProcessor(size={"height": 16, "width": 16}).save_pretrained(repository)
    Image.new("RGB", (20, 24), (200, 30, 90)).save(tmp_path / "photo.jpg")
    monkeypatch.chdir(tmp_path)
    text = str(card_of(tmp_path / "run", model=HUB_MODEL | {"name": "org/base", "base_model": "org/base"}, adapter=True))
    snippets = re.findall(r"```python\n(.*?)```", text, flags=re.DOTALL)

    names: dict[str, Any] = {}
    for snippet in snippets:
        exec(textwrap.dedent(snippet).replace("USER/REPOSITORY", str(repository)).replace("org/base", str(tmp_path / "base")), names)

    assert len(snippets) == 2
    assert "'score'" in capsys.readouterr().out
    pixels = torch.rand(1, 3, 16, 16)
    with torch.no_grad():
        expected, found = names["classifier"].model(pixels).logits, names["model"].eval()(pixels).logits
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-5)
