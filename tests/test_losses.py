import torch
from torch.nn import functional as F

from vocseg.losses import CrossEntropy, loss_totals


def test_cross_entropy_equals_torch_and_ignores_void():
    logits, mask = torch.randn(2, 5, 7, 9), torch.randint(0, 5, (2, 7, 9))
    mask[0, :3] = 255
    assert torch.allclose(CrossEntropy()(logits, mask), F.cross_entropy(logits, mask, ignore_index=255))
    total, count = CrossEntropy().totals(logits, mask)
    assert count == (mask != 255).sum()
    assert torch.allclose(total / count, F.cross_entropy(logits, mask, ignore_index=255))


def test_all_void_is_zero_with_zero_gradients():
    logits = torch.randn(1, 5, 4, 4, requires_grad=True)
    loss = CrossEntropy()(logits, torch.full((1, 4, 4), 255))
    loss.backward()
    assert loss.item() == 0
    assert torch.equal(logits.grad, torch.zeros_like(logits))


def test_totals_of_a_strangers_loss_are_weighted_by_its_valid_pixels():
    stranger = torch.nn.CrossEntropyLoss(ignore_index=255)
    logits, mask = torch.randn(2, 5, 4, 4), torch.randint(0, 5, (2, 4, 4))
    mask[0] = 255
    expected = CrossEntropy().totals(logits, mask)
    assert torch.allclose(torch.stack(loss_totals(stranger, logits, mask)), torch.stack(expected))
    nothing = loss_totals(stranger, logits, torch.full_like(mask, 255))
    assert [value.item() for value in nothing] == [0, 0]
