"""MixUp and CutMix against a computation by hand, and that a batch mixes alike whenever it is met again."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from hf_finetune.data.mixing import BatchMixing

SEEDS = [3, 1, 4, 1]
PIXELS = torch.randn(4, 3, 12, 10, generator=torch.Generator().manual_seed(0))
LABELS = torch.tensor([0, 2, 1, 2])
ONE_HOT = F.one_hot(LABELS, 3).float()


def shares(soft: torch.Tensor) -> torch.Tensor:
    """The share of the own class of each row whose neighbour has another class."""
    return torch.stack([soft[row, LABELS[row]] for row in range(4) if LABELS[row] != LABELS[row - 1]])


@pytest.mark.parametrize("seed", range(5))
def test_mixup_blends_photos_and_labels_by_one_share(seed: int) -> None:
    pixels, soft = BatchMixing(3, mixup_alpha=0.8)(PIXELS, LABELS, [seed, *SEEDS])
    share = shares(soft)[0]
    assert torch.allclose(shares(soft), share)
    torch.testing.assert_close(pixels, share * PIXELS + (1 - share) * PIXELS.roll(1, 0))
    torch.testing.assert_close(soft, share * ONE_HOT + (1 - share) * ONE_HOT.roll(1, 0))


@pytest.mark.parametrize("seed", range(5))
def test_cutmix_pastes_a_box_and_counts_its_pixels(seed: int) -> None:
    pixels, soft = BatchMixing(3, cutmix_alpha=1.0)(PIXELS, LABELS, [seed, *SEEDS])
    pasted = (pixels != PIXELS).any(1)
    assert torch.equal(pasted, pasted[:1].expand_as(pasted))
    box = pasted[0].any(1)[:, None] & pasted[0].any(0)
    assert torch.equal(box, pasted[0])
    assert torch.equal(pixels[:, :, box], PIXELS.roll(1, 0)[:, :, box])
    share = 1 - box.float().mean()
    torch.testing.assert_close(soft, share * ONE_HOT + (1 - share) * ONE_HOT.roll(1, 0))


def test_shares_follow_the_beta_distribution() -> None:
    mixing = BatchMixing(3, mixup_alpha=0.4)
    drawn = torch.stack([shares(mixing(PIXELS, LABELS, [seed])[1])[0] for seed in range(400)])
    expected = torch.distributions.Beta(0.4, 0.4)
    assert abs(float(drawn.mean()) - 0.5) < 0.06
    assert abs(float(drawn.var()) - float(expected.variance)) < 0.02


def test_the_seeds_of_the_views_decide_and_nothing_else() -> None:
    mixing = BatchMixing(3, mixup_alpha=0.8, cutmix_alpha=1.0)
    torch.manual_seed(1)
    state = torch.get_rng_state()
    first = mixing(PIXELS, LABELS, SEEDS)
    assert torch.equal(torch.get_rng_state(), state)
    torch.manual_seed(2)
    assert all(torch.equal(one, other) for one, other in zip(first, mixing(PIXELS, LABELS, SEEDS), strict=True))
    assert not torch.equal(first[0], mixing(PIXELS, LABELS, [0, *SEEDS[1:]])[0])


def test_with_both_each_batch_takes_one_of_the_two() -> None:
    mixing = BatchMixing(3, mixup_alpha=1.0, cutmix_alpha=1.0)
    kept = [float((mixing(PIXELS, LABELS, [seed])[0] == PIXELS).float().mean()) for seed in range(60)]
    boxes = sum(share > 0.01 for share in kept)  # MixUp leaves no pixel as it was
    assert 15 < boxes < 45


def test_without_alphas_there_is_no_mixing() -> None:
    assert not BatchMixing(3)
    assert BatchMixing(3, cutmix_alpha=0.1)
