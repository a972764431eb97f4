"""The auxiliary decoder: its loss, where it is used, and what checkpoints hold of it."""

from functools import partial

import lightning as L
import pytest
import torch
from torch.utils.data import DataLoader, TensorDataset

from vocseg import SegmentationTask, SkipDecoder, StridedEncoder, VocsegError
from vocseg.checkpoints import read_checkpoint

CLASSES = ["background", "a", "b"]
SMALL = partial(SkipDecoder, width=4, dropout=0.0)


def small(widths=(4, 8), **settings):
    torch.manual_seed(0)
    settings = {"auxiliary": SMALL, "optimizer": partial(torch.optim.SGD, lr=0.1), **settings}
    return SegmentationTask(StridedEncoder(widths=widths), SMALL, CLASSES, **settings)


def test_its_weighted_loss_is_added_in_training_alone(tmp_path):
    images, masks = torch.rand(2, 3, 9, 10), torch.randint(0, 3, (2, 9, 10))
    task, loader = small(auxiliary_weight=0.3), DataLoader(TensorDataset(images, masks), batch_size=2)
    features = task.network.features(images)
    assert [tuple(feature.shape[1:]) for feature in features] == [(4, 6, 6), (8, 3, 3)]  # of the image padded to 12
    task.train_loss.update, task.log = lambda *_: None, lambda *_, **__: None
    main, extra = (
        task.loss(task(images), masks),
        task.loss(task.network.decode(features[:1], (9, 10), task.auxiliary), masks),
    )
    assert task.training_step((images, masks), 0)["loss"].item() == pytest.approx((main + 0.3 * extra).item())

    task = small()
    before = task.auxiliary.reduce[0].weight.clone()
    run = L.Trainer(max_epochs=1, accelerator="cpu", logger=False, default_root_dir=tmp_path, enable_progress_bar=False)
    calls = []
    task.auxiliary.register_forward_hook(lambda module, *_: calls.append(module.training))
    run.fit(task, loader, loader)
    assert calls == [True]
    assert not torch.equal(task.auxiliary.reduce[0].weight, before)
    assert [group["name"] for group in run.optimizers[0].param_groups] == ["backbone", "decoder", "auxiliary"]
    assert run.callback_metrics["train/loss"] == pytest.approx(small().loss(small()(images), masks).item(), abs=1e-5)


def test_the_command_line_builds_it_and_checkpoints_rebuild_it(fit_flags, vocseg, tmp_path):
    flags = ["--model.auxiliary", "SkipDecoder", "--model.auxiliary.width", 8, "--model.auxiliary_weight", 0.2]
    status, _, err = vocseg(*fit_flags, *flags, "--trainer.max_epochs", 1)
    assert status == 0, err
    path = tmp_path / "lightning_logs/quickstart/version_0/checkpoints/last.ckpt"
    task = SegmentationTask.load_from_checkpoint(path)
    assert task.auxiliary_weight == 0.2
    assert any(name.startswith("auxiliary.") for name in read_checkpoint(path)["state_dict"])
    assert torch.equal(
        task.state_dict()["auxiliary.reduce.0.weight"], read_checkpoint(path)["state_dict"]["auxiliary.reduce.0.weight"]
    )
    status, _, err = vocseg("test", "--ckpt_path", path, "--trainer.enable_progress_bar", "false")
    assert (status, err) == (0, "")
    assert vocseg(*fit_flags, *flags, "--ckpt_path", "last")[0] == 0
    status, _, err = vocseg(*fit_flags, "--ckpt_path", path, "--model.auxiliary", "null", "--trainer.max_epochs", 3)
    assert status == 1
    assert "not of this network: auxiliary." in err


@pytest.mark.parametrize("settings", [{"widths": (4,)}, {"auxiliary_weight": -1}])
def test_it_needs_two_features_and_a_weight(settings):
    with pytest.raises(VocsegError, match="two features or more"):
        small(**settings)
