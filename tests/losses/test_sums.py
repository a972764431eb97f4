"""Sums of losses: values, class weights, checkpoints, the command line; sums over the batches of an evaluation."""

import pytest
import torch
import yaml
from torch import nn

from vocseg import (
    CrossEntropy,
    Dice,
    FocalLoss,
    LovaszSoftmax,
    OHEMCrossEntropy,
    SegmentationTask,
    StridedEncoder,
    SumOfLosses,
    VocsegError,
)
from vocseg.components import from_config, to_config
from vocseg.decoders import SkipDecoder
from vocseg.losses import loss_totals


def test_loss_without_totals_is_multiplied_by_the_number_of_valid_pixels():
    user_loss = torch.nn.CrossEntropyLoss(ignore_index=255)
    logits, mask = torch.randn(2, 5, 4, 4), torch.randint(0, 5, (2, 4, 4))
    mask[0] = 255
    expected = CrossEntropy().totals(logits, mask)
    assert torch.allclose(torch.stack(loss_totals(user_loss, logits, mask)), torch.stack(expected))
    only_void = loss_totals(user_loss, logits, torch.full_like(mask, 255))
    assert [value.item() for value in only_void] == [0, 0]


def batch():
    generator = torch.Generator().manual_seed(0)
    mask = torch.randint(0, 3, (2, 8, 9), generator=generator)
    mask[0, :2] = 255
    return torch.randn(2, 3, 8, 9, generator=generator), mask


def test_sum_is_weighted_and_reaches_the_gradients():
    logits, mask = batch()
    logits.requires_grad_()
    parts = [CrossEntropy([1.0, 2.0, 3.0]), Dice(), LovaszSoftmax(True)]
    values = [loss(logits, mask).item() for loss in parts]
    assert SumOfLosses(parts)(logits, mask).item() == pytest.approx(sum(values))
    weighted = SumOfLosses(parts, [1, 0.5, 0])(logits, mask)
    assert weighted.item() == pytest.approx(values[0] + 0.5 * values[1])
    weighted.backward()
    ours = logits.grad.clone()
    logits.grad = None
    (parts[0](logits, mask) + 0.5 * parts[1](logits, mask)).backward()
    assert torch.allclose(ours, logits.grad, atol=1e-7)


def test_evaluation_loss_of_a_sum_is_weighted_by_the_valid_pixels():
    logits, mask = batch()
    loss = SumOfLosses([CrossEntropy(), Dice()], [1, 2])
    total, count = loss_totals(loss, logits, mask)
    assert count == (mask != 255).sum()
    assert (total / count).item() == pytest.approx(loss(logits, mask).item())


def test_only_void_gives_zero_with_zero_gradients():
    logits = torch.randn(1, 3, 4, 4, requires_grad=True)
    loss = SumOfLosses([CrossEntropy(), Dice(0), LovaszSoftmax(), OHEMCrossEntropy(), FocalLoss()])
    value = loss(logits, torch.full((1, 4, 4), 255))
    value.backward()
    assert value.item() == 0
    assert torch.equal(logits.grad, torch.zeros_like(logits))


def test_configuration_rebuilds_the_same_sum():
    loss = SumOfLosses([CrossEntropy(label_smoothing=0.1), SumOfLosses([Dice(2.0), LovaszSoftmax(True)])], [1, 0.5])
    config = to_config(loss)
    assert yaml.safe_load(yaml.safe_dump(config)) == config
    assert config["init_args"]["losses"][0]["class_path"] == "vocseg.CrossEntropy"
    rebuilt = from_config(config, "loss", nn.Module)
    assert to_config(rebuilt) == config
    assert rebuilt(*batch()).item() == loss(*batch()).item()


def test_number_of_class_weights_inside_a_sum_is_checked():
    loss = SumOfLosses([Dice(), CrossEntropy([1, 2])])
    with pytest.raises(VocsegError, match="2 numbers for 3 classes"):
        SegmentationTask(StridedEncoder(widths=(4, 8)), SkipDecoder, ["x", "y", "z"], loss=loss)


CONFIG = """
model:
  loss:
    class_path: SumOfLosses
    init_args:
      losses:
      - {class_path: CrossEntropy, init_args: {class_weights: inverse_frequency}}
      - class_path: Dice
      - {class_path: LovaszSoftmax, init_args: {per_image: true}}
      - {class_path: OHEMCrossEntropy, init_args: {threshold: 0.6, class_weights: inverse_frequency}}
      weights: [1, 0.5, 0.5, 0.1]
"""


def test_sums_work_from_yaml_and_flags_to_checkpoints(fit_flags, vocseg, tmp_path):
    (tmp_path / "sum.yaml").write_text(CONFIG)
    status, _, err = vocseg(*fit_flags, "--config", "sum.yaml", "--name", "a", "--trainer.max_epochs", 1)
    assert (status, err) == (0, "")
    checkpoint = tmp_path / "lightning_logs/a/version_0/checkpoints/last.ckpt"
    loss = SegmentationTask.load_from_checkpoint(checkpoint).loss
    assert [type(part).__name__ for part in loss.losses] == [
        "CrossEntropy",
        "Dice",
        "LovaszSoftmax",
        "OHEMCrossEntropy",
    ]
    assert (loss.weights, loss.losses[2].per_image, loss.losses[3].threshold) == ([1, 0.5, 0.5, 0.1], True, 0.6)
    weights = loss.losses[0].class_weights
    assert len(set(weights.tolist())) > 1  # counted
    assert torch.equal(weights, loss.losses[3].class_weights)
    status, _, err = vocseg("validate", "--ckpt_path", checkpoint)
    assert status == 0, err
    (tmp_path / "sum.yaml").write_text(CONFIG.replace("Dice", "Dise"))
    status, _, err = vocseg(*fit_flags, "--config", "sum.yaml")
    assert status != 0
    assert "there is no class 'Dise' (in sum.yaml). Did you mean 'Dice'?" in err
    flags = ["--model.loss", "SumOfLosses", "--model.loss.losses", "[{class_path: CrossEntropy}, {class_path: Dice}]"]
    status, _, err = vocseg(*fit_flags, *flags, "--name", "b", "--trainer.max_epochs", 1)
    assert (status, err) == (0, "")


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: SumOfLosses([]), "one or more loss modules"),
        (lambda: SumOfLosses([Dice]), "one or more loss modules"),
        (lambda: SumOfLosses([Dice()], [1, 2]), "2 weights for 1 losses"),
        (lambda: SumOfLosses([Dice()], [-1]), "not negative"),
        (lambda: SumOfLosses([Dice()], [0]), "not all 0"),
        (lambda: SumOfLosses([Dice()], [float("nan")]), "finite"),
    ],
)
def test_invalid_settings_are_refused(build, message):
    with pytest.raises(VocsegError, match=message):
        build()
