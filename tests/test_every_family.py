"""A user's own folder of photos and any classifier, with every flag of the schedules, rates, BatchNorm and regularisation, and no code."""

from __future__ import annotations

import json
from pathlib import Path

import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest

from hf_finetune import finetune, make_arguments
from hf_finetune.errors import ModelError
from tests.builders import BUILDERS, photo

EVERYTHING = {
    "freeze": "gradual:start=1,every=1",
    "layer_lr_decay": 0.75,
    "head_lr": 1e-2,
    "unfreeze_warmup": 2,
    "mixup_alpha": 0.2,
    "cutmix_alpha": 1.0,
    "random_erasing": 0.25,
    "ema_decay": 0.9,
    "label_smoothing_factor": 0.1,
    "augmentation": "medium",
    "early_stopping_patience": 2,
}
AT_ONCE = {"unfreeze_warmup": 0, "layer_lr_decay": 1.0}
VARIANTS = {
    "dropout": {"dropout": 0.1},
    "drop_path": {"drop_path": 0.1},
    "batch_norm": {"batch_norm": "frozen"},
    "recalibrate": {"batch_norm": "recalibrate", "freeze": "head", **AT_ONCE},
    "batch_norm_only": {"freeze": "batch_norm_only", **AT_ONCE},
    "stage": {"layer_groups": "stage"},
    "lora": {"adapter": "lora", "freeze": "none", **AT_ONCE},
    "lr_finder": {"lr_finder": True},
}
# what a network that lacks the part says, in place of doing nothing
LACKING = {
    "dropout": "--dropout 0.1 does not apply to",
    "drop_path": "--drop_path 0.1 does not apply to",
    "batch_norm": "--batch_norm frozen does not apply to",
    "recalibrate": "--batch_norm recalibrate does not apply to",
    "batch_norm_only": "which has no BatchNorm",
    "lora": "lora_targets 'attention' matches no module of",
}
WITH_BATCH_NORM = {"resnet", "timm_resnet", "timm_efficientnet"}


@pytest.fixture(scope="session")
def own_photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three classes of 14 photos of different sizes."""
    folder = tmp_path_factory.mktemp("photos")
    for number in range(42):
        path = folder / ("cat", "dog", "owl")[number % 3] / f"{number}.jpg"
        path.parent.mkdir(exist_ok=True)
        photo(number, (40 + number % 20, 44)).save(path)
    return folder


def run(kind: str, own_photos: Path, tmp_path: Path, **settings: object) -> None:
    model = BUILDERS[kind](tmp_path / "base")
    where = {"dataset": str(own_photos), "model": str(model), "output_dir": str(tmp_path / "run")}
    small = {"num_train_epochs": 3, "per_device_train_batch_size": 8, "report": False, "use_cpu": True, "disable_tqdm": True}
    finetune(make_arguments(**where, **small, **EVERYTHING | settings))


@pytest.mark.parametrize("kind", BUILDERS)
def test_everything_together(kind: str, own_photos: Path, tmp_path: Path) -> None:
    run(kind, own_photos, tmp_path)
    metrics = json.loads((tmp_path / "run" / "metrics.json").read_text())
    stages = metrics["train"]["stages"]
    assert [len(stage["groups"]) for stage in stages] == [2, 3, 4][: len(stages)]  # the head, and one layer more in each epoch
    assert len(pq.read_table(tmp_path / "run" / "predictions.parquet").filter(pc.field("split") == "test")) == 8


@pytest.mark.slow
@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("kind", BUILDERS)
def test_each_flag_works_or_says_that_it_does_not_apply(kind: str, variant: str, own_photos: Path, tmp_path: Path) -> None:
    if variant in ("batch_norm", "recalibrate", "batch_norm_only") and kind in WITH_BATCH_NORM:
        return run(kind, own_photos, tmp_path, **VARIANTS[variant])
    try:
        run(kind, own_photos, tmp_path, **VARIANTS[variant])
    except ModelError as error:
        assert LACKING[variant] in str(error)  # noqa: PT017 - which families have the part is what the test finds out
        assert not (tmp_path / "run" / "metrics.json").exists()
    else:
        assert variant not in ("batch_norm", "recalibrate", "batch_norm_only")
