"""Losses: values and gradients against torch and the papers, void pixels, class weights, invalid settings."""

import math

import pytest
import torch
from torch.nn import functional as F

from vocseg import VocsegError
from vocseg.losses import CrossEntropy, FocalLoss, inverse_frequency, loss_totals


def test_cross_entropy_equals_torchs_and_ignores_void():
    logits, mask = torch.randn(2, 5, 7, 9), torch.randint(0, 5, (2, 7, 9))
    mask[0, :3] = 255
    assert torch.allclose(CrossEntropy()(logits, mask), F.cross_entropy(logits, mask, ignore_index=255))
    total, count = CrossEntropy().totals(logits, mask)
    assert count == (mask != 255).sum()
    assert torch.allclose(total / count, F.cross_entropy(logits, mask, ignore_index=255))


def test_cross_entropy_of_only_void_is_zero_with_zero_gradients():
    logits = torch.randn(1, 5, 4, 4, requires_grad=True)
    loss = CrossEntropy()(logits, torch.full((1, 4, 4), 255))
    loss.backward()
    assert loss.item() == 0
    assert torch.equal(logits.grad, torch.zeros_like(logits))


def test_loss_without_totals_is_multiplied_by_the_number_of_valid_pixels():
    user_loss = torch.nn.CrossEntropyLoss(ignore_index=255)
    logits, mask = torch.randn(2, 5, 4, 4), torch.randint(0, 5, (2, 4, 4))
    mask[0] = 255
    expected = CrossEntropy().totals(logits, mask)
    assert torch.allclose(torch.stack(loss_totals(user_loss, logits, mask)), torch.stack(expected))
    only_void = loss_totals(user_loss, logits, torch.full_like(mask, 255))
    assert [value.item() for value in only_void] == [0, 0]


@pytest.fixture
def batch():
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(2, 5, 16, 18, generator=generator)
    mask = torch.randint(0, 5, (2, 16, 18), generator=generator)
    mask[0, :3] = 255
    return logits, mask


WEIGHTS = [0.1, 0.5, 2.0, 0.0, 1.3]


@pytest.mark.parametrize("loss", [CrossEntropy(WEIGHTS), FocalLoss(0, WEIGHTS)])
def test_weighted_losses_have_torchs_values_and_gradients(loss, batch):
    logits, mask = batch
    our_logits, torch_logits = logits.clone().requires_grad_(), logits.clone().requires_grad_()
    expected = F.cross_entropy(torch_logits, mask, weight=torch.tensor(WEIGHTS), ignore_index=255, reduction="mean")
    value = loss(our_logits, mask)
    value.backward()
    expected.backward()
    assert abs(value.item() - expected.item()) < 1e-6
    assert torch.allclose(our_logits.grad, torch_logits.grad, atol=1e-7)


@pytest.mark.parametrize("gamma", [0.5, 1.0, 2.0, 5.0])
def test_focal_loss_equals_equation_4_of_lin_et_al(gamma, batch):
    logits, mask = batch
    total, count = 0.0, 0
    probabilities = logits.double().softmax(1)
    for image in range(2):
        for row in range(16):
            for column in range(18):
                label = int(mask[image, row, column])
                if label != 255:
                    p = float(probabilities[image, label, row, column])
                    total += -((1 - p) ** gamma) * math.log(p)
                    count += 1
    assert FocalLoss(gamma)(logits, mask).item() == pytest.approx(total / count, rel=1e-5)


@pytest.mark.parametrize("weights", [None, WEIGHTS])
def test_totals_of_batches_add_up_to_those_of_the_split(weights, batch):
    logits, mask = batch
    loss = FocalLoss(2, weights)
    parts = [loss.totals(logits[image : image + 1], mask[image : image + 1]) for image in range(2)]
    summed = sum(total for total, _ in parts) / sum(count for _, count in parts)
    assert summed.item() == pytest.approx(loss(logits, mask).item(), rel=1e-5)


@pytest.mark.parametrize("gamma", [0.0, 0.5, 2.0])
@pytest.mark.parametrize("scale", [1e4, -1e4])
def test_extreme_logits_give_finite_losses_and_gradients(gamma, scale, batch):
    logits = (batch[0].sign() * scale).requires_grad_()
    value = FocalLoss(gamma, WEIGHTS)(logits, batch[1])
    value.backward()
    assert torch.isfinite(value)
    assert torch.isfinite(logits.grad).all()


def test_losses_are_computed_in_float32_under_mixed_precision(batch):
    logits, mask = batch
    for loss in (CrossEntropy(WEIGHTS), FocalLoss(2, WEIGHTS)):
        exact = loss(logits.bfloat16().float(), mask).item()
        for enabled in (True, False):
            with torch.autocast("cpu", torch.bfloat16, enabled=enabled):
                value = loss(logits.bfloat16(), mask)
            assert value.dtype == torch.float32
            assert value.item() == pytest.approx(exact)


@pytest.mark.parametrize("weights", [None, WEIGHTS])
def test_focal_loss_of_only_void_is_zero_with_zero_gradients(weights):
    logits = torch.randn(1, 5, 4, 4, requires_grad=True)
    loss = FocalLoss(2, weights)(logits, torch.full((1, 4, 4), 255))
    loss.backward()
    assert loss.item() == 0
    assert torch.equal(logits.grad, torch.zeros_like(logits))


def test_inverse_frequency_equals_the_papers_formula():
    counts = torch.tensor([1000, 10, 40])
    inverse = [1 / 1000, 1 / 10, 1 / 40]
    assert inverse_frequency(counts).tolist() == pytest.approx([value / sum(inverse) for value in inverse])


def test_class_without_pixels_gets_the_weight_of_the_rarest_class():
    weights = inverse_frequency(torch.tensor([1000, 0, 10, 40]))
    assert weights[1] == weights[2]
    assert weights[[0, 2, 3]].tolist() == pytest.approx(inverse_frequency(torch.tensor([1000, 10, 40])).tolist())
    with pytest.raises(VocsegError, match="void"):
        inverse_frequency(torch.zeros(4))


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: FocalLoss(-0.1), "gamma of at least 0, got -0.1"),
        (lambda: FocalLoss(float("nan")), "gamma"),
        (lambda: CrossEntropy([1.0, -1.0]), "not negative"),
        (lambda: CrossEntropy([1.0, math.inf]), "finite"),
        (lambda: CrossEntropy([0.0, 0.0]), "all 0"),
        (lambda: CrossEntropy([1.0, 2.0]).prepare(3), "2 numbers for 3 classes"),
    ],
)
def test_invalid_settings_are_refused(build, message):
    with pytest.raises(VocsegError, match=message):
        build()
