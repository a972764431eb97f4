"""A frozen backbone's features, computed once in a fit."""

from typing import Any

import lightning as L
import torch
from lightning.pytorch.utilities.rank_zero import rank_zero_info

from vocseg.callbacks.base import datamodule_of
from vocseg.data.datasets import SegmentationDataset
from vocseg.errors import VocsegError
from vocseg.feature_cache import GIGABYTE, FeatureCache
from vocseg.network import SegmentationNetwork

VARIANTS, EPOCHS = 4, 16
"""An image may come in so many variants (two flips make four), in so many epochs."""


class CachedFeatures(L.Callback):
    """Computes the features of each image once in a fit, with a wholly frozen backbone.

    That is worth it where images come again: with ``train_transforms`` that draw nothing at random or only flip, and in
    each validation. Results are the same but for rounding. See :class:`vocseg.feature_cache.FeatureCache`. A resumed
    run computes them again; several processes each keep what they see.

    Args:
        gigabytes: the most memory to use (10^9 bytes), of each process.

    Raises:
        VocsegError: ``gigabytes`` is not positive; when a fit begins, the backbone trains, or the training images never
            come again.
    """

    def __init__(self, gigabytes: float) -> None:
        FeatureCache(gigabytes)
        self.gigabytes = gigabytes

    def on_fit_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Checks that features can come again."""
        _check_frozen(pl_module)
        dataset = getattr(datamodule_of(trainer), "datasets", {}).get("train")
        if isinstance(dataset, SegmentationDataset):
            images: list[torch.Tensor] = []
            for epoch in range(EPOCHS):
                image = dataset[epoch, 0]["image"]
                if not any(torch.equal(image, other) for other in images):
                    images.append(image)
            if len(images) > VARIANTS:
                raise VocsegError(
                    "--cache_features: no training image comes twice, because train_transforms or copy_paste change it "
                    "at random: use --data.train_transforms resize (or flip) without copy_paste, or leave the option "
                    "out."
                )

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Begins, with the weights that the fit has."""
        network = _network(pl_module)
        network.feature_cache = FeatureCache(self.gigabytes)

    def on_train_epoch_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Checks that no other callback has unfrozen the backbone."""
        _check_frozen(pl_module)

    def teardown(self, trainer: L.Trainer, pl_module: Any, stage: str) -> None:
        """Frees the memory."""
        cache = getattr(getattr(pl_module, "network", None), "feature_cache", None)
        if cache is not None:
            pl_module.network.feature_cache = None
            used = self.gigabytes - cache.bytes_left / GIGABYTE
            rank_zero_info(
                f"Cached features: {len(cache)} images in {used:.2f} GB saved {cache.hits} of {cache.requests} passes "
                "through the backbone."
            )

    def on_exception(self, trainer: L.Trainer, pl_module: L.LightningModule, exception: BaseException) -> None:
        """Frees the memory where a fit ends early."""
        self.teardown(trainer, pl_module, "fit")


def _network(pl_module: L.LightningModule) -> SegmentationNetwork:
    network = getattr(pl_module, "network", None)
    if not isinstance(network, SegmentationNetwork):
        raise VocsegError(f"--cache_features needs a SegmentationTask; {type(pl_module).__name__} is none.")
    return network


def _check_frozen(pl_module: L.LightningModule) -> None:
    """Checks that no parameter of the backbone trains and no module of it is in training mode.

    Raises:
        VocsegError: one is.
    """
    backbone = _network(pl_module).backbone
    names = [name for name, parameter in backbone.named_parameters() if parameter.requires_grad]
    names += [name or "itself" for name, module in backbone.named_modules() if module.training]
    if names:
        raise VocsegError(
            f"--cache_features needs a backbone that is wholly frozen, but {names[0]} of {type(backbone).__name__} "
            "trains: --model.backbone.freeze true (in Python freeze=True), or leave the option out."
        )
