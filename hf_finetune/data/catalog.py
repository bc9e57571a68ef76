"""`load_dataset`: a name, a Hub id or a folder → three splits with `image`, `label` and `image_id`, every image of them checked."""

from __future__ import annotations

import logging
import os
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import NamedTuple

import datasets
from huggingface_hub.errors import HTTPError

from hf_finetune.data.columns import set_columns
from hf_finetune.data.images import check_images
from hf_finetune.data.splits import cut_missing_splits, limit_splits, name_splits, require_classes
from hf_finetune.errors import DataError, HubError, did_you_mean
from hf_finetune.hub_access import require_hub

logger = logging.getLogger(__name__)

_HUB_ID = re.compile(r"\w[\w.-]*/\w[\w.-]*")


class Entry(NamedTuple):
    """A data set that has a name of its own.

    Attributes:
        hub_id: Its id on the Hub, or None for one that is made on the spot.
        license: As model cards write it, or None where it is not known.
        load: Makes the splits of a data set that is not on the Hub.
    """

    hub_id: str | None
    license: str | None
    load: Callable[[], Mapping[str, datasets.Dataset]] | None = None


class DatasetOrigin(NamedTuple):
    """Where a data set comes from, as `metrics.json` and the model card name it."""

    name: str
    hub_id: str | None
    license: str | None


def _drawn_pets() -> Mapping[str, datasets.Dataset]:
    from hf_finetune.data.drawn import drawn_pets

    return drawn_pets()


def _drawn_flowers() -> Mapping[str, datasets.Dataset]:
    from hf_finetune.data.drawn import drawn_flowers

    return drawn_flowers()


def _digits() -> Mapping[str, datasets.Dataset]:
    from hf_finetune.data.digits import digits

    return digits()


CATALOG = {
    "oxford_pets": Entry("timm/oxford-iiit-pet", "cc-by-sa-4.0"),
    "flowers102": Entry("dpdl-benchmark/oxford_flowers102", None),
    "drawn_pets": Entry(None, "apache-2.0", _drawn_pets),
    "drawn_flowers": Entry(None, "apache-2.0", _drawn_flowers),
    "digits": Entry(None, "cc-by-4.0", _digits),
}


def load_dataset(
    name: str,
    *,
    label_column: str = "label",
    image_column: str = "image",
    validation_fraction: float = 0.2,
    test_fraction: float = 0.2,
    max_train_samples: int | None = None,
    max_eval_samples: int | None = None,
    skip_bad_images: bool = False,
    seed: int = 42,
    notices: list[str] | None = None,
) -> datasets.DatasetDict:
    """Load a data set for image classification.

    Args:
        name: A name of `CATALOG`, a Hub id (`ORG/NAME`), or a folder: in Hub layout (`data/*.parquet`), with the unpacked archives of
            Oxford-IIIT Pet or Flowers-102, written by `DatasetDict.save_to_disk`, or of class folders.
        label_column: Becomes `label`; a `ClassLabel`, or integers or strings, whose sorted values become the classes.
        image_column: Becomes `image`.
        validation_fraction: Share of train that is cut for validation where the data set has none, in (0, 1).
        test_fraction: Share of train that is cut for test where the data set has none, in (0, 1).
        max_train_samples: Images of train to keep, a stratified draw; None keeps all.
        max_eval_samples: Images of validation, and of test, to keep; None keeps all.
        skip_bad_images: Leave damaged images out and say so, instead of raising.
        seed: Of every cut and draw, at least 0.
        notices: Receives one sentence about each thing that was skipped, cut or replaced.

    Returns:
        The splits `train`, `validation` and `test`. Columns: `image` (`datasets.Image`), `label` (`ClassLabel`), `image_id` (string, unique
        within a split), then the data set's own. Official splits are kept.

    Raises:
        DataError: If the name, a column, a label, a split or an image cannot be used.
        HubError: If the data set is on the Hub and cannot be had from there.
    """
    source = _open(name, notices)
    name = dataset_origin(name).name  # in what a report may quote: no path of this machine
    splits = name_splits(source, name, notices)
    splits = set_columns(splits, name, label_column=label_column, image_column=image_column, notices=notices)
    require_classes(splits, name)
    splits = cut_missing_splits(
        splits, name, validation_fraction=validation_fraction, test_fraction=test_fraction, seed=seed, notices=notices
    )
    splits = limit_splits(splits, max_train_samples=max_train_samples, max_eval_samples=max_eval_samples, seed=seed)
    checked = check_images(datasets.DatasetDict(splits), skip_bad_images, notices)
    require_classes(checked, name)
    return checked


def dataset_origin(name: str) -> DatasetOrigin:
    """Return the name, the Hub id and the license of a data set, without loading it.

    Args:
        name: As `load_dataset` takes it.

    Returns:
        For a folder, the folder's own name alone, so that no path of this machine gets into a model card.
    """
    if name in CATALOG:
        return DatasetOrigin(name, CATALOG[name].hub_id, CATALOG[name].license)
    path = Path(name).expanduser()
    if path.exists():
        return DatasetOrigin(path.resolve().name, None, None)
    known = {entry.hub_id: entry.license for entry in CATALOG.values() if entry.hub_id}
    return DatasetOrigin(name, name, known.get(name))


def _open(name: str, notices: list[str] | None) -> Mapping[str, datasets.Dataset]:
    """Return the splits of a data set with their own names and columns."""
    entry = CATALOG.get(name)
    if entry is not None and entry.load is not None:
        return entry.load()
    if entry is not None and entry.hub_id is not None:
        return _open_hub(entry.hub_id, "")
    path = Path(name).expanduser()
    if name and path.is_dir():
        return _open_folder(path, notices)
    if name and path.exists():
        raise DataError(f"The path '{name}' is a file; --dataset takes a folder.{_unpack_hint(path)}")
    if name.startswith((".", "~", os.sep)) or name.count("/") > 1 or name.endswith("/"):
        raise DataError(f"The path '{name}' does not exist; --dataset takes {_allowed()}.")
    if _HUB_ID.fullmatch(name):
        return _open_hub(name, f"There is no folder '{name}' either.")
    raise DataError(
        f"The dataset '{name}' is not known, and no folder of that name exists; --dataset takes {_allowed()}.{did_you_mean(name, CATALOG)}"
    )


def _allowed() -> str:
    return f"a name ({', '.join(CATALOG)}), a Hub id (ORG/NAME) or a folder"


def _unpack_hint(path: Path) -> str:
    return " Unpack it first." if path.suffix.lower() in (".zip", ".tar", ".gz", ".tgz", ".xz") else ""


def _open_folder(path: Path, notices: list[str] | None) -> Mapping[str, datasets.Dataset]:
    # these modules import one library each that the other data sets do not need
    from hf_finetune.data.flowers102 import is_flowers_archive, load_flowers_archive, with_flower_names
    from hf_finetune.data.image_folder import load_class_folders, load_hub_layout, parquet_files
    from hf_finetune.data.oxford_pets import is_pets_archive, load_pets_archive

    if (path / "dataset_dict.json").is_file():
        return _open_saved(path)
    if parquet_files(path):
        return with_flower_names(load_hub_layout(path), path.resolve().name)
    if is_pets_archive(path):
        return load_pets_archive(path)
    if is_flowers_archive(path):
        return load_flowers_archive(path)
    return load_class_folders(path, notices)


def _open_saved(path: Path) -> Mapping[str, datasets.Dataset]:
    try:
        return datasets.DatasetDict.load_from_disk(str(path))
    except (OSError, ValueError, KeyError, TypeError) as error:
        reason = (str(error).strip() or type(error).__name__).splitlines()[0].rstrip(".")
        raise DataError(f"The data set that was saved in '{path}' cannot be read ({reason}); save it anew with save_to_disk.") from None


def _open_hub(hub_id: str, hint: str) -> Mapping[str, datasets.Dataset]:
    from hf_finetune.data.flowers102 import with_flower_names

    require_hub(hub_id, "dataset", hint)
    try:
        splits = datasets.load_dataset(hub_id)
    except (datasets.exceptions.DatasetsError, HTTPError, OSError, ValueError, RuntimeError) as error:
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise HubError(f"The dataset '{hub_id}' cannot be loaded from the Hub: {reason}") from None
    return with_flower_names(dict(splits), hub_id)
