"""A frozen backbone's features: computed once, equal to fresh ones, and refused where they cannot be kept."""

import csv
from functools import partial

import lightning as L
import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from vocseg import SegmentationTask, SkipDecoder, StridedEncoder, VocsegError
from vocseg.callbacks import CachedFeatures
from vocseg.feature_cache import FeatureCache
from vocseg.network import SegmentationNetwork

SMALL = partial(SkipDecoder, width=4, dropout=0.0)
FROZEN = ["--model.backbone.freeze", "true", "--data.train_transforms", "resize", "--previews.images", 0]


def frozen(widths=(4, 8)):
    torch.manual_seed(0)
    backbone = StridedEncoder(widths=widths)
    return backbone.freeze()


def calls_of(backbone):
    sizes = []
    backbone.register_forward_hook(lambda module, inputs, _: sizes.append(len(inputs[0])))
    return sizes


def test_only_images_that_were_not_seen_pass_through_the_backbone():
    backbone, cache, images = frozen(), FeatureCache(1), torch.rand(5, 3, 16, 20)
    images = images.contiguous(memory_format=torch.channels_last)
    expected, sizes = backbone(images), calls_of(backbone)
    for batch in ([0, 1], [1, 2, 0, 3], [3, 1], [4], [2, 4, 0]):
        for feature, fresh in zip(cache(backbone, images[batch]), expected, strict=True):
            assert torch.allclose(feature, fresh[batch], atol=1e-6)
            assert feature.is_contiguous(memory_format=torch.channels_last)
            assert not feature.requires_grad
    assert sizes == [2, 2, 2, 1]  # the third is the comparison
    assert (len(cache), cache.requests, cache.hits) == (5, 12, 7)
    square = torch.ones(1, 3, 16, 20)
    assert cache(backbone, square.reshape(1, 3, 20, 16))[0].shape != cache(backbone, square)[0].shape


def test_full_memory_keeps_what_it_has():
    backbone, images = frozen(), torch.rand(3, 3, 16, 16)
    one_image = sum(feature.nbytes for feature in backbone(images[:1]))
    cache, sizes = FeatureCache(2.5 * one_image / 1e9), calls_of(backbone)
    for _ in range(3):
        assert torch.allclose(cache(backbone, images)[0], backbone(images)[0], atol=1e-6)
    assert len(cache) == 2
    assert sizes[::2] == [3, 1, 1]


def test_features_kept_in_validation_serve_training():
    backbone, cache, images = frozen(), FeatureCache(1), torch.rand(2, 3, 16, 16)
    network = SegmentationNetwork(backbone, SMALL(backbone.channels, backbone.strides, 3))
    network.feature_cache = cache
    with torch.inference_mode():
        network(images)
    network(images).sum().backward()
    assert cache.hits == 2
    assert network.decoder.reduce[0].weight.grad is not None


class Noisy(nn.Module):
    channels, strides = (3,), (1,)

    def forward(self, image):
        return [image + torch.rand_like(image)]


def test_a_backbone_whose_features_change_is_found():
    cache, images = FeatureCache(1), torch.rand(2, 3, 8, 8)
    cache(Noisy(), images)
    with pytest.raises(VocsegError, match="other features for the same images"):
        cache(Noisy(), images)


def scores(folder):
    with (folder / "lightning_logs/quickstart/version_0/metrics.csv").open() as file:
        return [
            {name: float(value) for name, value in row.items() if value and name.startswith(("train/", "val/"))}
            for row in csv.DictReader(file)
        ]


def test_a_fit_gives_the_same_results(fit_flags, vocseg, tmp_path):
    """With flips, an auxiliary decoder and averaged weights; resumed after the first epoch."""
    options = [*fit_flags, *FROZEN, "--data.train_transforms", "flip", "--ema", 0.5, "--trainer.max_epochs", 3]
    options += ["--model.auxiliary", "SkipDecoder", "--trainer.default_root_dir"]
    cached = ["--cache_features", 0.5]
    assert vocseg(*options, tmp_path / "without")[0] == 0
    assert vocseg(*options, tmp_path / "with", *cached, "--trainer.max_epochs", 1)[0] == 0
    assert vocseg(*options, tmp_path / "with", *cached, "--ckpt_path", "last")[0] == 0
    expected, kept = scores(tmp_path / "without"), scores(tmp_path / "with")
    assert len(expected) == 3
    for row, fresh in zip(kept, expected, strict=True):
        assert row == pytest.approx(fresh, abs=1e-6)


def test_each_image_passes_once_in_a_fit_of_plain_loaders(tmp_path):
    backbone, images, masks = frozen(), torch.rand(4, 3, 16, 16), torch.randint(0, 3, (4, 16, 16))
    task, sizes = SegmentationTask(backbone, SMALL, ["background", "a", "b"]), calls_of(backbone)
    loader = DataLoader(TensorDataset(images, masks), batch_size=2)
    options = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False}
    trainer = L.Trainer(
        max_epochs=3, accelerator="cpu", num_sanity_val_steps=0, callbacks=[CachedFeatures(1)], **options
    )
    trainer.fit(task, loader, loader)
    assert sizes == [2, 2, 2]  # two batches, and the comparison
    assert task.network.feature_cache is None


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--model.backbone.freeze", "false"], "wholly frozen"),
        (["--model.backbone.freeze", "[blocks.0]"], "wholly frozen"),
        (["--data.train_transforms", "crop"], "change it at random"),
        (["--data.copy_paste", 0.9], "change it at random"),
        (["--cache_features", 0], "above 0"),
    ],
)
def test_fits_that_cannot_use_it_are_refused(options, message, fit_flags, vocseg):
    status, _, err = vocseg(*fit_flags, *FROZEN, "--cache_features", 1, *options)
    assert status == 1
    assert message in err
    assert len(err.strip().splitlines()) == 1


def test_a_backbone_unfrozen_in_the_middle_is_refused():
    class Unfreeze(L.Callback):
        def on_train_epoch_end(self, trainer, pl_module):
            pl_module.backbone.unfreeze()

    task = SegmentationTask(frozen(), SMALL, ["background", "a", "b"])
    loader = DataLoader(TensorDataset(torch.rand(2, 3, 16, 16), torch.zeros(2, 16, 16, dtype=torch.long)))
    options = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False}
    trainer = L.Trainer(max_epochs=2, accelerator="cpu", callbacks=[CachedFeatures(1), Unfreeze()], **options)
    with pytest.raises(VocsegError, match="wholly frozen"):
        trainer.fit(task, loader)
    assert task.network.feature_cache is None
