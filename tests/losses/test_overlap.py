"""Dice and Lovasz-softmax: hand-computed values, brute force over hard predictions, void, precision."""

import math

import numpy as np
import pytest
import torch

from vocseg import Dice, LovaszSoftmax, VocsegError

LOSSES = [Dice(), Dice(0.0), LovaszSoftmax(), LovaszSoftmax(per_image=True)]


def logits_of(probabilities):
    """Logits whose softmax over the classes (the last axis of a nested list [H, W, C]) are these probabilities."""
    return torch.tensor(probabilities).movedim(-1, 0)[None].log()


def random_batch(classes=4, size=(2, 9, 11)):
    generator = torch.Generator().manual_seed(1)
    logits, mask = (
        torch.randn(size[0], classes, *size[1:], generator=generator),
        torch.randint(0, classes - 1, size, generator=generator),
    )  # the last class does not occur
    mask[0, :3] = 255
    return logits, mask


def test_dice_equals_a_value_computed_by_hand():
    logits = logits_of([[[0.5, 0.25, 0.25], [0.125, 0.75, 0.125], [0.25, 0.25, 0.5]]])
    mask = torch.tensor([[[0, 1, 255]]])  # class 2 does not occur, the last pixel does not count
    for smooth in (0.0, 1.0):
        first = (2 * 0.5 + smooth) / (0.5**2 + 0.125**2 + 1 + smooth)
        second = (2 * 0.75 + smooth) / (0.25**2 + 0.75**2 + 1 + smooth)
        assert Dice(smooth)(logits, mask).item() == pytest.approx(1 - (first + second) / 2, rel=1e-6)


def test_lovasz_equals_a_value_computed_by_hand():
    logits = logits_of([[[0.9, 0.1], [0.4, 0.6], [0.7, 0.3]]])
    # class 0 has pixels 0 and 1, with errors .1 and .6; pixel 2, of class 1, has the error .7. In this order the
    # Jaccard loss of class 0 grows to 1/3, 2/3 and 1. Class 1 has errors .7 (its own pixel), .6, .1: 1, 1, 1.
    by_hand = (0.7 / 3 + 0.6 / 3 + 0.1 / 3 + 0.7) / 2
    assert LovaszSoftmax()(logits, torch.tensor([[[0, 0, 1]]])).item() == pytest.approx(by_hand, rel=1e-6)


@pytest.mark.parametrize("per_image", [False, True])
def test_lovasz_of_hard_predictions_is_the_jaccard_loss(per_image):
    rng = np.random.default_rng(0)
    for _ in range(10):
        predicted, mask = rng.integers(0, 4, (2, 6, 7)), rng.integers(0, 3, (2, 6, 7))
        mask[rng.random(mask.shape) < 0.2] = 255
        losses = []
        for images in ([0], [1]) if per_image else ([0, 1],):
            found, truth = predicted[images][mask[images] != 255], mask[images][mask[images] != 255]
            ious = [((found == c) & (truth == c)).sum() / ((found == c) | (truth == c)).sum() for c in np.unique(truth)]
            losses.append(1 - np.mean(ious))
        logits = 100 * torch.nn.functional.one_hot(torch.from_numpy(predicted), 4).movedim(-1, 1).float()
        value = LovaszSoftmax(per_image)(logits, torch.from_numpy(mask)).item()
        assert value == pytest.approx(np.mean(losses), rel=1e-5)


def test_lovasz_equals_the_extension_from_its_definition():
    """Sum over the sorted errors of error times the growth of the Jaccard loss, with sets of pixels in double."""
    logits, mask = random_batch()
    probabilities, losses = logits.double().softmax(1), []
    valid = (mask != 255).nonzero().tolist()
    for label in range(3):
        pixels = []
        for i, y, x in valid:
            truth = int(mask[i, y, x]) == label
            pixels.append((abs(truth - float(probabilities[i, label, y, x])), truth))
        pixels.sort(reverse=True)
        total, wrong_inside, wrong_outside, before, value = sum(truth for _, truth in pixels), 0, 0, 0.0, 0.0
        for error, truth in pixels:
            wrong_inside, wrong_outside = wrong_inside + truth, wrong_outside + (not truth)
            jaccard = 1 - (total - wrong_inside) / (total + wrong_outside)
            value, before = value + error * (jaccard - before), jaccard
        losses.append(value)
    assert LovaszSoftmax()(logits, mask).item() == pytest.approx(sum(losses) / 3, rel=1e-5)


@pytest.mark.parametrize("loss", LOSSES)
def test_void_has_no_influence_and_no_gradient(loss):
    logits, mask = random_batch()
    changed = torch.where((mask == 255)[:, None], 5 * torch.randn_like(logits), logits).requires_grad_()
    value = loss(changed, mask)
    value.backward()
    assert value.item() == pytest.approx(loss(logits, mask).item(), rel=1e-6)
    assert (changed.grad.movedim(1, -1)[mask == 255] == 0).all()
    assert (changed.grad.movedim(1, -1)[mask != 255] != 0).any()


@pytest.mark.parametrize("loss", LOSSES)
def test_only_void_gives_zero_with_zero_gradients(loss):
    logits = torch.randn(2, 4, 3, 3, requires_grad=True)
    value = loss(logits, torch.full((2, 3, 3), 255))
    value.backward()
    assert value.item() == 0
    assert torch.equal(logits.grad, torch.zeros_like(logits))


def test_image_of_only_void_does_not_count_per_image():
    logits, mask = random_batch()
    mask[0] = 255
    assert LovaszSoftmax(True)(logits, mask).item() == pytest.approx(LovaszSoftmax()(logits[1:], mask[1:]).item())


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("loss", LOSSES)
def test_computed_in_float32_under_mixed_precision(loss, dtype):
    logits, mask = random_batch()
    mask = mask.repeat(1, 40, 40)  # sums beyond float16's range
    logits = logits.repeat(1, 1, 40, 40).to(dtype).requires_grad_()
    with torch.autocast("cpu", dtype):
        value = loss(logits, mask)
    value.backward()
    assert value.dtype == torch.float32
    assert value.item() == pytest.approx(loss(logits.detach().float(), mask).item())
    assert torch.isfinite(logits.grad).all()


@pytest.mark.parametrize("scale", [1e4, -1e4])
@pytest.mark.parametrize("loss", LOSSES)
def test_extreme_logits_give_finite_losses_and_gradients(loss, scale):
    logits, mask = random_batch()
    logits = (logits.sign() * scale).requires_grad_()
    value = loss(logits, mask)
    value.backward()
    assert torch.isfinite(value)
    assert torch.isfinite(logits.grad).all()


@pytest.mark.parametrize("loss", LOSSES)
def test_minimising_finds_the_labels(loss):
    mask = random_batch()[1]
    logits = torch.zeros(2, 4, 9, 11, requires_grad=True)
    optimizer = torch.optim.Adam([logits], lr=0.3)
    for _ in range(60):
        optimizer.zero_grad()
        loss(logits, mask).backward()
        optimizer.step()
    valid = mask != 255
    assert (logits.argmax(1)[valid] == mask[valid]).float().mean() > 0.98
    assert loss(logits, mask).item() < 0.1


@pytest.mark.parametrize("smooth", [-1.0, math.inf, math.nan])
def test_invalid_smooth_is_refused(smooth):
    with pytest.raises(VocsegError, match="finite smooth of at least 0"):
        Dice(smooth)
