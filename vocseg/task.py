"""SegmentationTask: training, validation, test and prediction of any backbone with any decoder."""

import inspect
import math
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, Self, cast

import lightning as L
import numpy as np
import torch
from lightning.pytorch.cli import OptimizerCallable
from lightning.pytorch.utilities.rank_zero import rank_zero_info
from torch import Tensor, nn
from torch.optim.lr_scheduler import LRScheduler, ReduceLROnPlateau
from torch.utils.data import DistributedSampler
from torchmetrics import MeanMetric

from vocseg.backbones import Backbone
from vocseg.checkpoints import with_current_keys, written_by_vocseg
from vocseg.components import NetworkPart, class_path_of, plain, plain_settings, to_config
from vocseg.data.classes import check_class_names
from vocseg.data.labels import VOC_CLASSES, VOID
from vocseg.decoders import Decoder
from vocseg.errors import VocsegError
from vocseg.folding import Folding
from vocseg.inference import Inference, batch_logits, label_map, preprocess, probability_map, without_padding
from vocseg.initialization import checkpoint_of, start_from
from vocseg.losses import Loss, inverse_frequency, loss_totals
from vocseg.metrics import Result, SegmentationMetric
from vocseg.network import SegmentationNetwork
from vocseg.optimizers import (
    Settings,
    apply_changed_settings,
    check_resumable,
    check_schedule_resumable,
    group_settings,
    layers_of,
    parameter_groups,
    split_layers,
    split_norms,
)
from vocseg.parts import build_auxiliary, build_backbone, build_decoder, build_loss, build_optimizer, build_schedule
from vocseg.schedules import Schedule, SchedulerFactory, attach_scheduler, schedule_settings, step_on_plateau
from vocseg.state_dicts import check_fits

# jsonargparse looks for a short name in the first type first: ours win over classes of the same name elsewhere
DecoderCallable = Callable[[list[int], list[int], int], Decoder] | Callable[[list[int], list[int], int], nn.Module]
default_optimizer = partial(torch.optim.Adam, lr=1e-3)


class SegmentationTask(NetworkPart):
    """Trains and scores a :class:`vocseg.network.SegmentationNetwork`.

    Checkpoints describe themselves: ``SegmentationTask.load_from_checkpoint(path)`` needs nothing else, as long as each
    component could be recorded (see :mod:`vocseg.components`); one that could not is passed again.

    Batches are ``{"image": float32 [B, 3, H, W], "mask": int64 [B, H, W]}``, labels 0..C-1 and 255 = void, or a plain
    ``(image, mask)``. Evaluation batches may have ``original_mask`` (a list of the untouched masks at each image's own
    size), ``input_size`` ([B, 2], height and width of each image without padding) and ``index`` (indices in the split's
    list).

    Args:
        backbone: a module with ``channels``, ``strides`` and ``forward(image) -> list of features``, shallow to deep.
        decoder: builds the decoder from ``(channels, strides, num_classes)``: a class, a ``functools.partial`` of one,
            or the finished module. None for a :class:`vocseg.WholeNetwork`, which needs no decoder.
        class_names: one name per class, in the order of the labels.
        loss: a module ``(logits, mask) -> scalar``; cross-entropy over valid pixels if None.
        optimizer: builds the optimizer from parameters, ``functools.partial(torch.optim.AdamW, lr=1e-3)`` for one; Adam
            with a learning rate of 1e-3 if None.
        backbone_lr: learning rate of the backbone where it differs from the optimizer's.
        schedule: how the learning rates change over the run: a :class:`vocseg.schedules.Schedule`, or a class (or
            ``functools.partial``) of ``torch.optim.lr_scheduler``; constant if None.
        channels_last: see :class:`vocseg.network.SegmentationNetwork`.
        norm_weight_decay: weight decay of norms and biases (parameters of at most one dimension) where it differs from
            the optimizer's; 0 is usual.
        layer_decay: factor between the learning rates of two successive layers of the backbone, above 0 and at most 1:
            the last has the backbone's, and those before it ever smaller ones. See
            :func:`vocseg.optimizers.split_layers`.
        auxiliary: builds, as ``decoder`` does, a second decoder from all features but the deepest. It helps to train
            the backbone and is not used otherwise (deep supervision: Zhao et al. 2017, "Pyramid Scene Parsing
            Network", section 3.3).
        auxiliary_weight: of the auxiliary decoder's loss, which is added to the decoder's; ``train/loss`` is the
            decoder's alone.

    Attributes:
        network: the plain module of backbone and decoder.
        results: the last :class:`vocseg.metrics.Result` of ``val`` and ``test``.
        inference: how validation, test, prediction and :meth:`segment` apply the network; checkpoints do not hold it.
    """

    def __init__(
        self,
        backbone: Backbone | nn.Module,
        decoder: DecoderCallable | None = None,
        class_names: Sequence[str] = VOC_CLASSES,
        loss: Loss | nn.Module | None = None,
        optimizer: OptimizerCallable | None = None,
        backbone_lr: float | None = None,
        schedule: Schedule | SchedulerFactory | None = None,
        channels_last: bool = True,
        norm_weight_decay: float | None = None,
        layer_decay: float | None = None,
        auxiliary: DecoderCallable | None = None,
        auxiliary_weight: float = 0.4,
    ) -> None:
        super().__init__()
        self.class_names = check_class_names(class_names)
        self.save_hyperparameters(
            {
                **_arguments_of_a_subclass(self),
                "backbone": to_config(backbone),
                "decoder": to_config(decoder, skip=3),
                "class_names": self.class_names,
                "loss": to_config(loss),
                "optimizer": to_config(optimizer),
                "backbone_lr": backbone_lr,
                "schedule": to_config(schedule),
                "channels_last": channels_last,
                "norm_weight_decay": norm_weight_decay,
                "layer_decay": layer_decay,
                "auxiliary": to_config(auxiliary, skip=3),
                "auxiliary_weight": auxiliary_weight,
            }
        )
        # a checkpoint passes the configurations instead of the components
        num_classes = len(self.class_names)
        built = build_backbone(backbone)
        self.network = SegmentationNetwork(built, build_decoder(decoder, built, num_classes), channels_last)
        self.auxiliary = build_auxiliary(auxiliary, auxiliary_weight, built, num_classes)
        if self.auxiliary is not None:
            self.auxiliary.to(memory_format=torch.channels_last if channels_last else torch.contiguous_format)
        self.auxiliary_weight = auxiliary_weight
        self.loss: Any = build_loss(loss, num_classes)
        self.optimizer = build_optimizer(optimizer, default_optimizer)
        self.schedule = build_schedule(schedule)
        self.backbone_lr = backbone_lr
        if norm_weight_decay is not None and norm_weight_decay < 0:
            raise VocsegError(f"norm_weight_decay must be at least 0; got {norm_weight_decay}.")
        if layer_decay is not None and not 0 < layer_decay <= 1:
            raise VocsegError(f"layer_decay must be above 0 and at most 1 (0.75, say); got {layer_decay}.")
        self.norm_weight_decay, self.layer_decay = norm_weight_decay, layer_decay
        self.train_loss = MeanMetric()
        self.metrics = nn.ModuleDict(
            {stage: SegmentationMetric(len(self.class_names), self.class_names) for stage in ("val", "test")}
        )
        self.results: dict[str, Result] = {}
        self.inference = Inference()
        self._folding = Folding()
        self.predict_probabilities = False
        self._data_settings: dict[str, Any] = {}
        self._loaded: dict[str, Any] = {}
        self._settings: dict[str, Any] = {}

    @property
    def backbone(self) -> nn.Module:
        """The network's backbone."""
        return self.network.backbone

    @property
    def decoder(self) -> nn.Module:
        """The network's decoder."""
        return self.network.decoder

    @property
    def lr(self) -> float:
        """The optimizer's learning rate, of all groups that have no own; Lightning's LearningRateFinder sets it."""
        return float(self.optimizer([{"params": [nn.Parameter(torch.zeros(1))]}]).param_groups[0]["lr"])

    @lr.setter
    def lr(self, value: float) -> None:
        self.optimizer = partial(self.optimizer, lr=value)
        if not self.trainer.optimizers:
            return
        optimizer, scheduler = self.trainer.optimizers[0], self.trainer.lr_scheduler_configs[0].scheduler
        for group in optimizer.param_groups:
            if group.get("name", "").split("/")[0] != "backbone" or self.backbone_lr is None:
                group["initial_lr"] = value * group.get("lr_scale", 1.0)
        if "base_lrs" in scheduler.state_dict():
            base = [group["initial_lr"] for group in optimizer.param_groups]
            scheduler.load_state_dict({**scheduler.state_dict(), "base_lrs": base})

    @property
    def data_settings(self) -> dict[str, Any]:
        """The hyperparameters of the data module, as far as they are known; empty without one."""
        return dict(self._data_settings)

    @property
    def trained_steps(self) -> int:
        """Optimizer steps that these weights have seen, here or before they were loaded from a checkpoint."""
        return max(self.global_step, int(self._loaded.get("global_step", 0)))

    @property
    def monitorable(self) -> list[str]:
        """The scores that a fit logs, and that checkpoints and early stopping can follow."""
        scores = ("loss", "miou", "pixel_accuracy", "mean_accuracy", *(f"iou/{name}" for name in self.class_names))
        return [*(f"val/{score}" for score in scores), "train/loss"]

    def forward(self, image: Tensor) -> Tensor:
        """The logits of normalised images, float [B, 3, H, W], of any size: float32 [B, C, H, W]."""
        return self.network(image)

    def init_from(self, source: str | Path) -> Self:
        """Starts a new training from the weights of another one, as far as they fit; reports what does not.

        Args:
            source: as :func:`vocseg.initialization.start_from`.

        Raises:
            VocsegError: the source does not exist, does not load safely, or holds nothing that fits.
        """
        start_from(self.network, self.class_names, source)
        return self

    @classmethod
    def from_run(cls, run: str | Path, **components: Any) -> Self:
        """Loads the best checkpoint of a run, in eval mode and on the CPU.

        Args:
            run: its name (the newest run of that name below ``lightning_logs``), its folder, or a checkpoint.
            **components: those that the checkpoint could not record.

        Raises:
            VocsegError: there is no such run, or it has no checkpoint.
        """
        path = checkpoint_of(run)
        return cls.load_from_checkpoint(path, map_location="cpu", weights_only=True, **components).eval()

    def infer(self, image: Tensor) -> Tensor:
        """Computes logits, or the logarithm of mean probabilities, as ``inference`` says; without gradients.

        Args:
            image: float [B, 3, H, W], normalised, of any size.

        Returns:
            float32 [B, C, H, W].

        Raises:
            VocsegError: the window is smaller than the network's stride, or batch norm cannot be folded.
        """
        folds = self.inference.fold and not self.training
        network = self._folding(self.network, image) if folds else self
        return self.inference(network, image, self.network.stride)

    def setup(self, stage: str) -> None:
        """Remembers how the data module prepares images, for :meth:`segment`; gives the parts their trainer."""
        for part in (self.backbone, self.decoder):
            if isinstance(part, L.LightningModule):
                part.trainer = self.trainer  # Lightning does so for direct children; the network is between
        self._data_settings = dict(getattr(_datamodule(self.trainer), "hparams", None) or self._data_settings)

    def on_fit_start(self) -> None:
        """Reads the backbone's pretrained weights and counts the classes, if a new training starts."""
        if self.trainer.ckpt_path is not None:  # known only now, not yet in setup()
            return
        load_pretrained = getattr(self.backbone, "load_pretrained", None)
        if load_pretrained is not None:
            load_pretrained()
        # also losses inside a SumOfLosses
        counting = [loss for loss in self.loss.modules() if getattr(loss, "counts_classes", False)]
        if counting:
            weights = inverse_frequency(self._count_classes())
            for loss in counting:
                loss.class_weights.copy_(weights)

    def on_train_start(self) -> None:
        """Gives a resumed optimizer the settings that differ from those in its checkpoint."""
        optimizer = self.optimizers()
        if self.trainer.ckpt_path is None or not self._settings or isinstance(optimizer, list):
            return
        scheduler = cast(LRScheduler | None, self.lr_schedulers())
        apply_changed_settings(optimizer.optimizer, scheduler, self._loaded["settings"], self._settings)

    def on_train_epoch_start(self) -> None:
        """Resets the running loss; not called where an epoch is resumed in the middle."""
        self.train_loss.reset()

    def training_step(self, batch: Any, batch_idx: int) -> dict[str, Tensor]:
        """One batch's ``loss``, a float scalar, and ``logits``, float32 [B, C, H, W], for a subclass's own terms."""
        image, mask = self._image_and_mask(batch, f"training batch {batch_idx}")
        loss, total, logits = self.training_losses(image, mask)
        self.train_loss.update(loss.detach(), len(image))
        self.log("train/loss", self.train_loss, on_step=False, on_epoch=True)
        self.log("loss", loss, prog_bar=True, logger=False, batch_size=len(image))
        return {"loss": total, "logits": logits}

    def training_losses(self, image: Tensor, mask: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """The decoder's loss, the loss to minimise (the auxiliary decoder's is in it), and the logits."""
        features = None if self.auxiliary is None else self.network.features(image)
        logits = self(image) if features is None else self.network.decode(features, image.shape[-2:])
        loss = total = self.loss(logits, mask)
        if features is not None:
            auxiliary = self.network.decode(features[:-1], image.shape[-2:], self.auxiliary)
            total = loss + self.auxiliary_weight * self.loss(auxiliary, mask)
        return loss, total, logits

    def validation_step(self, batch: Any, batch_idx: int) -> dict[str, list[Any]]:
        """Adds a batch to the validation metric.

        Returns:
            Three lists with one entry per image: ``index`` (in the split's list), ``labels`` (int64 [H, W], at the
            size of its target) and ``logits`` (float32 [C, h, w], at the input's size; see :meth:`infer`).
        """
        return self._evaluate(batch, "val", f"validation batch {batch_idx}")

    def test_step(self, batch: Any, batch_idx: int) -> dict[str, list[Any]]:
        """Adds a batch to the test metric; returns what :meth:`validation_step` does."""
        return self._evaluate(batch, "test", f"test batch {batch_idx}")

    def on_validation_epoch_start(self) -> None:
        """Resets the validation metric: an earlier validation may have been interrupted."""
        self._folding.clear()  # callbacks may have replaced the weights by their average
        self._metric("val").reset()

    def on_test_epoch_start(self) -> None:
        """Resets the test metric."""
        self._folding.clear()
        self._metric("test").reset()

    def on_validation_epoch_end(self) -> None:
        """Logs ``val/...``; a schedule that follows a score takes its step."""
        self._folding.clear()
        scores = self._log_result("val")
        if self.trainer.state.fn == "fit" and not self.trainer.sanity_checking:
            for configuration in self.trainer.lr_scheduler_configs:
                step_on_plateau(configuration.scheduler, scores)

    def on_test_epoch_end(self) -> None:
        """Logs ``test/...``."""
        self._log_result("test")

    def predict_step(self, batch: Any, batch_idx: int) -> list[Tensor]:
        """The label map of each image, uint8 [H, W], at ``original_size`` if the batch has it, else the input's size.

        With ``predict_probabilities`` the class probabilities instead, float32 [C, H, W].
        """
        image = batch["image"] if isinstance(batch, dict) else batch[0] if isinstance(batch, list | tuple) else batch
        extras = batch if isinstance(batch, dict) else {}
        maps: dict[int, Tensor] = {}
        for indices, logits in batch_logits(self.infer, image, extras.get("input_size")):
            for index, scores in zip(indices, logits, strict=True):
                size = extras["original_size"][index] if "original_size" in extras else scores.shape[-2:]
                if self.predict_probabilities:
                    maps[index] = probability_map(scores, size)
                else:
                    maps[index] = label_map(scores, size, torch.uint8)
        return [maps[index] for index in range(len(image))]

    def segment(self, image: Any) -> np.ndarray:
        """Segments one image, prepared like the images that this task was evaluated on.

        Args:
            image: a path, the bytes of an image file, a PIL image, or an array, [H, W, 3] (RGB) or [H, W] (grey), of
                uint8, uint16 or floats from 0 to 1.

        Returns:
            Its label map, uint8 [H, W].

        Raises:
            VocsegError: it cannot be read, or is no such array.
        """
        pixels, logits = self.image_logits(image)
        return label_map(logits, pixels.shape[:2], torch.uint8).cpu().numpy()

    @torch.no_grad()
    def image_logits(self, image: Any) -> tuple[np.ndarray, Tensor]:
        """Applies the network to one image, as :meth:`segment` does.

        Args:
            image: as in :meth:`segment`.

        Returns:
            The image as it was read, RGB uint8 [H, W, 3], and its logits at the size that the network saw, float32
            [C, h, w]; :func:`vocseg.inference.label_map` and :func:`vocseg.inference.probability_map` resize them.

        Raises:
            VocsegError: it cannot be read, or is no such array.
        """
        from vocseg.data.images import as_rgb

        settings = {
            name: self._data_settings[name] for name in ("bit_depth", "exif_rotation") if name in self._data_settings
        }
        pixels = as_rgb(image, **settings)
        tensor = preprocess(pixels, self._data_settings, len(self.class_names))
        was_training = self.training
        self.eval()
        logits = self.infer(tensor.to(self.device))[0]
        self.train(was_training)
        return pixels, logits

    def configure_optimizers(self) -> dict[str, Any]:  # type: ignore[override]  # one of the forms Lightning takes
        """The optimizer over all trainable parameters, the backbone in a group of its own, and the schedule."""
        try:
            optimizer = self.optimizer(self._parameter_groups())
        except ValueError as error:  # torch's: a negative learning rate, for one
            raise VocsegError(f"The optimizer cannot be built: {error}.") from error
        if isinstance(self.schedule, Schedule):
            schedule = self.schedule.attach(optimizer, self.trainer)
        else:
            schedule = attach_scheduler(self.schedule, optimizer, self.trainer)
        self._settings = {
            "optimizer_settings": group_settings(optimizer),
            "schedule_settings": schedule_settings(schedule),
        }
        if self.trainer.ckpt_path is not None and self._loaded.get("optimizer_groups"):
            described = to_config(self.hparams.get("optimizer")) or {"class_path": "torch.optim.Adam"}
            check_resumable(
                self._loaded["optimizer_class"],
                self._loaded["optimizer_groups"],
                described.get("class_path", type(optimizer).__name__),
                optimizer,
            )
            saved = self._loaded["settings"].get("schedule_settings")
            if saved is not None:
                check_schedule_resumable(saved, self._settings["schedule_settings"])
        return {"optimizer": optimizer, "lr_scheduler": schedule}

    def lr_scheduler_step(self, scheduler: Any, metric: Any) -> None:
        """Steps the schedule, except ``ReduceLROnPlateau``, which :meth:`on_validation_epoch_end` steps.

        Lightning steps that one after it has written the checkpoints of the epoch, and a resumed run would lack a step.
        """
        if not isinstance(scheduler, ReduceLROnPlateau):
            super().lr_scheduler_step(scheduler, metric)

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Adds the epoch's running loss, the optimizer's configured settings, and the classes of task and data.

        Of a user's own data module, hyperparameters that safe loading does not know are converted or left out.
        """
        datamodule = _datamodule(self.trainer)
        key = L.LightningDataModule.CHECKPOINT_HYPER_PARAMS_KEY
        if key in checkpoint:
            checkpoint[key] = plain_settings(checkpoint[key])
        written_by_vocseg(checkpoint).update(
            model_class=class_path_of(type(self)),
            data_class=None if datamodule is None else class_path_of(type(datamodule)),
            train_loss={name: torch.as_tensor(value).cpu() for name, value in self.train_loss.metric_state.items()},
            **self._settings,
        )

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Takes over what :meth:`on_save_checkpoint` added; refuses other classes and another network."""
        saved, own = checkpoint.get(self.CHECKPOINT_HYPER_PARAMS_KEY) or {}, written_by_vocseg(checkpoint)
        names = saved.get("class_names")
        if names is not None and list(names) != self.class_names:
            raise VocsegError(
                f"The checkpoint was trained on {len(names)} classes ({_some(names)}), but the data has "
                f"{len(self.class_names)} ({_some(self.class_names)}). To start a new training from its weights: "
                "--init_from, or SegmentationTask(...).init_from(path)."
            )
        checkpoint["state_dict"] = with_current_keys(checkpoint["state_dict"])
        check_fits(checkpoint["state_dict"], self.state_dict(), "The checkpoint", "the network as configured")
        running = own.get("train_loss") or checkpoint.get("train_loss") or {}  # vocseg 0.1.0 had no entry of its own
        if running:
            self.train_loss.load_state_dict({name: value.to(self.device) for name, value in running.items()})
        self._data_settings = dict(checkpoint.get(L.LightningDataModule.CHECKPOINT_HYPER_PARAMS_KEY) or {})
        states = checkpoint.get("optimizer_states") or []
        self._loaded = {
            "global_step": checkpoint.get("global_step", 0),
            "settings": own,
            "optimizer_class": (saved.get("optimizer") or {}).get("class_path", "torch.optim.Adam"),
            "optimizer_groups": [group for state in states for group in state["param_groups"]],
        }

    def _parameter_groups(self) -> list[dict[str, Any]]:
        parts = {"backbone": self.backbone, "decoder": self.decoder, "loss": self.loss}
        if self.auxiliary is not None:
            parts["auxiliary"] = self.auxiliary
        groups = parameter_groups(parts, {"backbone": self.backbone_lr})
        if self.layer_decay is not None and groups[0]["name"] == "backbone":  # else it is frozen
            rate = self.lr if self.backbone_lr is None else self.backbone_lr
            layers = layers_of(self.backbone)
            groups = [*split_layers({**groups[0], "lr": rate}, layers, self.layer_decay), *groups[1:]]
        if self.norm_weight_decay is not None:
            groups = [part for group in groups for part in split_norms(group, self.norm_weight_decay)]
        return groups

    def _count_classes(self) -> Tensor:
        """The pixels of each class in the training split, int64 [C]."""
        # rank 0 counts for all
        counts = getattr(_datamodule(self.trainer), "class_counts", None) if self.trainer.is_global_zero else None
        counts = self.trainer.strategy.broadcast(counts)
        if counts is None:
            raise VocsegError(
                "class_weights: inverse_frequency needs a data module with class_counts, as VOCDataModule has; with "
                "other data, give one number per class."
            )
        absent = [name for name, count in zip(self.class_names, counts.tolist(), strict=True) if not count]
        if absent:
            rank_zero_info(
                f"No pixel of the training split is {' or '.join(absent)}: weighted as much as the rarest class that "
                "has some."
            )
        return counts

    def _image_and_mask(self, batch: Any, name: str) -> tuple[Tensor, Tensor]:
        """Image and mask of a batch; labels of data that is not vocseg's are checked here.

        Raises:
            VocsegError: a label that is neither a class nor 255.
        """
        image, given = (batch["image"], batch["mask"]) if isinstance(batch, dict) else batch
        mask = given.long()
        if not (isinstance(batch, dict) and "index" in batch):
            if given.is_floating_point() and not torch.equal(given, given.round()):
                fraction = given[given != given.round()][0].item()
                raise VocsegError(f"The masks of {name} have the value {fraction:g}: labels are whole numbers.")
            unexpected = mask[(mask != VOID) & ((mask < 0) | (mask >= len(self.class_names)))]
            if len(unexpected):
                raise VocsegError(
                    f"The masks of {name} have the label {int(unexpected[0])}, but there are {len(self.class_names)} "
                    f"classes (0 to {len(self.class_names) - 1}, and {VOID} for void)."
                )
        return image, mask

    def _evaluate(self, batch: Any, stage: str, name: str) -> dict[str, list[Any]]:
        image, mask = self._image_and_mask(batch, name)
        extras: Mapping[str, Any] = batch if isinstance(batch, dict) else {}
        metric = self._metric(stage)
        first, rank, world = metric.images_seen, self.trainer.global_rank, self.trainer.world_size
        # as samplers deal them
        by_position = list(range(first * world + rank, (first + len(image)) * world + rank, world))
        if "index" not in extras:  # the sampler of another loader repeats images at the end, which must not count twice
            by_position = [position for position in by_position if position < self._images_of(stage)]
            image, mask = image[: len(by_position)], mask[: len(by_position)]
        targets = extras.get("original_mask", mask)[: len(image)]
        sizes = extras.get("input_size")
        logits: list[Any] = [None] * len(image)
        for indices, part in batch_logits(self.infer, image, None if sizes is None else sizes[: len(image)]):
            metric.update_loss(*loss_totals(self.loss, part, without_padding(mask, indices, part.shape[-2:])))
            for index, scores in zip(indices, part, strict=True):
                logits[index] = scores
        labels = [label_map(scores, target.shape[-2:]) for scores, target in zip(logits, targets, strict=True)]
        indices = torch.as_tensor(extras.get("index", by_position)).tolist()
        metric.update(labels, list(targets), indices)
        return {"index": indices, "labels": labels, "logits": logits}

    def _images_of(self, stage: str) -> float:
        """The number of images of a loader whose sampler divides them among processes; infinite of any other."""
        loader = self.trainer.test_dataloaders if stage == "test" else self.trainer.val_dataloaders
        sampler = getattr(loader, "sampler", None)
        return len(sampler.dataset) if isinstance(sampler, DistributedSampler) else math.inf  # type: ignore[arg-type]

    def _log_result(self, stage: str) -> dict[str, float]:
        metric = self._metric(stage)
        result = metric.compute()
        metric.reset()  # frees the memory
        self.results[stage] = result
        if self.trainer.state.fn != "fit":
            # else Lightning would log at step 0; the maximum of equal numbers is exact, the mean of float32 may not be
            self.log("step", float(max(self.trained_steps - 1, 0)), sync_dist=True, reduce_fx="max")
        scores = {
            "miou": result.miou,
            "loss": result.loss,
            "pixel_accuracy": result.pixel_accuracy,
            "mean_accuracy": result.mean_accuracy,
            # a class that occurs in neither prediction nor target has no IoU
            **{f"iou/{name}": iou for name, iou in zip(self.class_names, result.iou, strict=True) if iou == iou},
        }
        scores = {f"{stage}/{name}": value for name, value in scores.items()}
        for name, value in scores.items():
            # all processes have the same scores already; sync_dist tells Lightning not to warn
            self.log(name, value, prog_bar=name == f"{stage}/miou", sync_dist=True)
        return scores

    def _metric(self, stage: str) -> SegmentationMetric:
        return cast(SegmentationMetric, self.metrics[stage])


def _arguments_of_a_subclass(task: SegmentationTask) -> Settings:
    """The arguments that only a subclass's constructor has, for its checkpoints."""
    arguments = task.__dict__.pop("_init_args", {})
    ours = inspect.signature(SegmentationTask.__init__).parameters
    settings: Settings = {}
    for name in [name for name in arguments if name not in ours]:
        try:
            settings[name] = plain(arguments[name])
        except TypeError:
            rank_zero_info(
                f"Checkpoints cannot hold the argument {name} of {type(task).__name__}: pass it again, "
                f"{type(task).__name__}.load_from_checkpoint(path, {name}=...)."
            )
    return settings


def _datamodule(trainer: L.Trainer) -> L.LightningDataModule | None:
    return getattr(trainer, "datamodule", None)  # which Lightning sets without declaring it


def _some(names: Sequence[str]) -> str:
    return ", ".join(names[:4]) + (", ..." if len(names) > 4 else "")
