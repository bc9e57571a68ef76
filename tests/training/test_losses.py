"""The loss: exact under accumulation, smoothing in training only."""

import pytest
import torch
import torch.nn.functional as F

from hf_finetune.training.losses import CrossEntropy

torch.manual_seed(0)
LOGITS, LABELS = torch.randn(6, 4), torch.tensor([0, 3, 2, 1, 1, 0])


def test_is_the_mean_cross_entropy_where_no_count_is_given():
    assert torch.allclose(CrossEntropy()({"logits": LOGITS}, LABELS), F.cross_entropy(LOGITS, LABELS))


def test_parts_of_a_step_add_up_to_the_whole_step_whatever_their_sizes():
    loss = CrossEntropy(label_smoothing=0.1)
    parts = sum(loss({"logits": LOGITS[rows]}, LABELS[rows], torch.tensor(6)) for rows in (slice(0, 4), slice(4, 5), slice(5, 6)))
    assert torch.allclose(parts, loss({"logits": LOGITS}, LABELS, 6))


def test_smoothing_acts_in_training_and_not_in_evaluation():
    loss = CrossEntropy(label_smoothing=0.2)
    assert torch.allclose(loss({"logits": LOGITS}, LABELS), F.cross_entropy(LOGITS, LABELS, label_smoothing=0.2))
    with torch.no_grad():
        assert torch.allclose(loss({"logits": LOGITS}, LABELS), F.cross_entropy(LOGITS, LABELS))


def test_class_probabilities_are_counted_as_the_trainer_counts_them():
    soft = torch.softmax(torch.randn(6, 4), 1)
    expected = -(soft * LOGITS.log_softmax(1)).sum(1)
    loss = CrossEntropy()
    assert torch.allclose(loss({"logits": LOGITS}, soft), expected.mean())
    counted = soft.ne(-100).sum()  # what the Trainer does: one item an element
    parts = sum(loss({"logits": LOGITS[rows]}, soft[rows], counted) for rows in (slice(0, 4), slice(4, 6)))
    assert torch.allclose(parts, expected.mean())
    one_hot = F.one_hot(LABELS, 4).float()
    assert torch.allclose(loss({"logits": LOGITS}, one_hot), loss({"logits": LOGITS}, LABELS))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_is_computed_in_float32(dtype: torch.dtype):
    assert CrossEntropy()({"logits": LOGITS.to(dtype)}, LABELS).dtype == torch.float32
