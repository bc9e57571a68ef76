"""scikit-learn's 1,797 handwritten digits of 8 × 8 pixels as a `DatasetDict`: real images that need no network."""

from __future__ import annotations

from datasets import ClassLabel, Dataset, DatasetDict, Features, Image, Value
from PIL import Image as PillowImage
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split

from hf_finetune.data.drawing import png

TEST_FRACTION = 0.2
_SPLIT_SEED = 0


def digits() -> DatasetDict:
    """Return the digits with a fixed, stratified test split.

    Returns:
        Splits `train` (1,437) and `test` (360) with the columns `image` (RGB, 8 × 8 pixels, ink light on dark), `label` (`0` to `9`) and
        `image_id` (the position in scikit-learn's set). Source: E. Alpaydin and C. Kaynak, Optical Recognition of Handwritten Digits,
        UCI Machine Learning Repository, 1998.
    """
    source = load_digits()
    train, test = train_test_split(
        range(len(source.target)), test_size=TEST_FRACTION, random_state=_SPLIT_SEED, stratify=source.target, shuffle=True
    )
    features = Features({"image": Image(), "label": ClassLabel(names=[str(digit) for digit in range(10)]), "image_id": Value("string")})

    def split(rows: list[int]) -> Dataset:
        rows = sorted(rows)
        grey = [(source.images[row] * (255 / 16)).round().astype("uint8") for row in rows]
        columns = {
            "image": [png(PillowImage.fromarray(pixels).convert("RGB")) for pixels in grey],
            "label": [int(source.target[row]) for row in rows],
            "image_id": [f"digit_{row:04d}" for row in rows],
        }
        return Dataset.from_dict(columns, features=features)

    return DatasetDict({"train": split(train), "test": split(test)})
