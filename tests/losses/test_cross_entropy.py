"""Losses: values and gradients against torch and the papers, void pixels, class weights, invalid settings."""

import math

import pytest
import torch
from torch.nn import functional as F
from torch.utils._python_dispatch import TorchDispatchMode

from vocseg import VocsegError
from vocseg.losses import CrossEntropy, FocalLoss, OHEMCrossEntropy, inverse_frequency


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


LOSSES = [
    CrossEntropy(),
    CrossEntropy([0.5, 1, 2, 0, 1], label_smoothing=0.1),
    FocalLoss(),
    OHEMCrossEntropy(),
]


@pytest.mark.parametrize("loss", LOSSES, ids=lambda loss: type(loss).__name__)
def test_values_and_gradients_do_not_depend_on_the_memory_format_or_the_batch(loss):
    logits, mask = torch.randn(3, 5, 7, 9), torch.randint(0, 5, (3, 7, 9))
    mask[0, :3] = 255
    results = []
    for layout in (torch.contiguous_format, torch.channels_last):
        laid_out = logits.contiguous(memory_format=layout).detach().requires_grad_()
        value = loss(laid_out, mask)
        value.backward()
        results.append((value.detach(), laid_out.grad))
        results.append((loss(laid_out.detach(), mask), laid_out.grad))  # image by image
    for value, gradient in results[1:]:
        assert torch.allclose(value, results[0][0], rtol=1e-6)
        assert torch.allclose(gradient, results[0][1], atol=1e-7)


class Reductions(TorchDispatchMode):
    """Lists how torch's losses over 4-D logits are reduced: 0 is not at all."""

    def __init__(self):
        super().__init__()
        self.seen = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if func.overloadpacket is torch.ops.aten.nll_loss2d_forward:
            self.seen.append(args[3])
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("loss", LOSSES, ids=lambda loss: type(loss).__name__)
def test_no_sum_is_asked_of_the_kernel_that_is_not_deterministic_on_cuda(loss):
    with Reductions() as reductions:
        loss(torch.randn(2, 5, 4, 4), torch.randint(0, 5, (2, 4, 4)))
    assert set(reductions.seen) == {0}


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
    for loss in (
        CrossEntropy(WEIGHTS),
        FocalLoss(2, WEIGHTS),
        OHEMCrossEntropy(0.3),
        CrossEntropy(label_smoothing=0.1),
    ):
        exact = loss(logits.bfloat16().float(), mask).item()
        for enabled in (True, False):
            with torch.autocast("cpu", torch.bfloat16, enabled=enabled):
                value = loss(logits.bfloat16(), mask)
            assert value.dtype == torch.float32
            assert value.item() == pytest.approx(exact)


@pytest.mark.parametrize("weights", [None, WEIGHTS])
@pytest.mark.parametrize("loss_class", [FocalLoss, OHEMCrossEntropy])
def test_loss_of_only_void_is_zero_with_zero_gradients(loss_class, weights):
    logits = torch.randn(1, 5, 4, 4, requires_grad=True)
    loss = loss_class(class_weights=weights)(logits, torch.full((1, 4, 4), 255))
    loss.backward()
    assert loss.item() == 0
    assert torch.equal(logits.grad, torch.zeros_like(logits))


@pytest.mark.parametrize("weights", [None, WEIGHTS])
def test_label_smoothing_equals_torchs(weights, batch):
    logits, mask = batch
    ours, theirs = logits.clone().requires_grad_(), logits.clone().requires_grad_()
    tensor = None if weights is None else torch.tensor(weights)
    expected = F.cross_entropy(theirs, mask, weight=tensor, ignore_index=255, label_smoothing=0.1)
    loss = CrossEntropy(weights, label_smoothing=0.1)
    value = loss(ours, mask)
    value.backward()
    expected.backward()
    assert value.item() == pytest.approx(expected.item(), rel=1e-6)
    assert torch.allclose(ours.grad, theirs.grad, atol=1e-7)
    total, weight = loss.totals(logits, mask)  # of the evaluation
    assert (total / weight).item() == value.item()
    assert value.item() != pytest.approx(CrossEntropy(weights)(logits, mask).item(), rel=1e-3)


@pytest.mark.parametrize("weights", [None, WEIGHTS])
@pytest.mark.parametrize(("threshold", "min_kept"), [(0.05, 0.5), (0.3, 0.25), (0.05, 0.0), (1.0, 0.0)])
def test_hard_pixels_are_those_below_the_threshold_and_the_lowest_share(threshold, min_kept, weights, batch):
    logits, mask = batch
    probabilities = logits.double().softmax(1)
    pixels = [
        (float(probabilities[(i, int(mask[i, y, x]), y, x)]), WEIGHTS[mask[i, y, x]] if weights else 1.0)
        for i, y, x in (mask != 255).nonzero().tolist()
    ]
    pixels.sort()
    at_least = math.ceil(min_kept * len(pixels))
    hard = [pair for number, pair in enumerate(pixels) if number < at_least or pair[0] <= threshold]
    assert (len(hard) > at_least) == (min_kept < 0.5)  # with 0.5 the share decides, else the threshold
    expected = sum(-math.log(p) * weight for p, weight in hard) / sum(weight for _, weight in hard)
    loss = OHEMCrossEntropy(threshold, min_kept, weights)
    assert loss(logits, mask).item() == pytest.approx(expected, rel=1e-5)
    if threshold == 1:
        assert loss(logits, mask).item() == pytest.approx(CrossEntropy(weights)(logits, mask).item(), rel=1e-6)


def test_easy_pixels_get_no_gradient(batch):
    logits = batch[0].clone().requires_grad_()
    OHEMCrossEntropy(0.01, 0.5)(logits, batch[1]).backward()
    touched = (logits.grad != 0).any(1).sum()
    assert touched == math.ceil(0.5 * int((batch[1] != 255).sum()))
    OHEMCrossEntropy(1e-9, 0.0)(logits, batch[1]).backward()  # none is hard
    assert torch.isfinite(logits.grad).all()


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
        (lambda: CrossEntropy(label_smoothing=1), "at least 0 and less than 1, got 1"),
        (lambda: OHEMCrossEntropy(threshold=0), "threshold greater than 0"),
        (lambda: OHEMCrossEntropy(min_kept=1.5), r"of 0 to 1, got 0\.7 and 1\.5"),
    ],
)
def test_invalid_settings_are_refused(build, message):
    with pytest.raises(VocsegError, match=message):
        build()
