import datasets
import numpy as np
import pytest

from hf_finetune.data.subsets import labels_of, stratified_split, stratified_subset
from hf_finetune.errors import DataError


def rows(*counts: int) -> datasets.Dataset:
    labels = [label for label, count in enumerate(counts) for _ in range(count)]
    return datasets.Dataset.from_dict({"label": labels, "row": list(range(len(labels)))})


def counts(dataset: datasets.Dataset) -> list[int]:
    return np.bincount(labels_of(dataset)).tolist()


def test_every_class_has_its_share_in_both_parts() -> None:
    rest, part = stratified_split(rows(100, 50, 10), 0.2, seed=0)
    assert counts(rest) == [80, 40, 8]
    assert counts(part) == [20, 10, 2]


def test_parts_are_disjoint_complete_and_in_order() -> None:
    rest, part = stratified_split(rows(30, 30), 0.3, seed=1)
    assert list(rest["row"]) == sorted(rest["row"])
    assert list(part["row"]) == sorted(part["row"])
    assert sorted([*rest["row"], *part["row"]]) == list(range(60))


def test_the_seed_alone_decides() -> None:
    first, again, other = (list(stratified_split(rows(40, 40), 0.25, seed=seed)[1]["row"]) for seed in (3, 3, 4))
    assert first == again
    assert first != other


def test_the_draw_is_the_same_on_every_machine() -> None:
    assert list(stratified_split(rows(6, 6), 1 / 3, seed=42)[1]["row"]) == [2, 3, 8, 10]


def test_largest_remainders_hit_the_total() -> None:
    _, part = stratified_split(rows(*[19] * 7, *[21] * 5, 5), 0.2, seed=0)
    assert len(part) == round(0.2 * (19 * 7 + 21 * 5 + 5))
    assert set(counts(part)) <= {1, 3, 4, 5}


@pytest.mark.parametrize("fraction", [0.5, 0.9, 0.99])
def test_a_rare_class_stays_in_the_rest(fraction: float) -> None:
    rest, part = stratified_split(rows(20, 1, 2), fraction, seed=0)
    assert min(counts(rest)) >= 1
    assert counts(part)[1] == 0


@pytest.mark.parametrize("fraction", [0.0, 1.0, -0.1])
def test_a_fraction_out_of_range(fraction: float) -> None:
    with pytest.raises(DataError) as error:
        stratified_split(rows(4, 4), fraction, seed=0)
    assert str(error.value) == f"A split of fraction {fraction} cannot be cut; the fraction lies strictly between 0 and 1."


def test_no_class_has_a_row_to_spare() -> None:
    with pytest.raises(DataError) as error:
        stratified_split(rows(1, 1, 1), 0.2, seed=0)
    assert str(error.value) == "No split can be cut: none of the 3 classes has more than one image."


def test_a_subset_keeps_the_shares() -> None:
    assert counts(stratified_subset(rows(100, 50, 10), 32, seed=0)) == [20, 10, 2]


def test_a_subset_keeps_every_class_where_it_can() -> None:
    assert counts(stratified_subset(rows(1000, 3, 1), 3, seed=0)) == [1, 1, 1]
    assert len(stratified_subset(rows(1000, 3, 1), 2, seed=0)) == 2


def test_a_large_enough_limit_changes_nothing() -> None:
    dataset = rows(3, 3)
    assert stratified_subset(dataset, 6, seed=0) is dataset


def test_a_subset_of_nothing() -> None:
    with pytest.raises(DataError) as error:
        stratified_subset(rows(3, 3), 0, seed=0)
    assert str(error.value) == "A subset of 0 images cannot be drawn; at least 1 is needed."
