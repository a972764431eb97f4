"""SegmentationTask: training, validation, test and prediction of any backbone with any decoder."""

import math
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any

import lightning as L
import numpy as np
import torch
from lightning.pytorch.cli import OptimizerCallable
from lightning.pytorch.utilities.rank_zero import rank_zero_info
from torch import Tensor, nn
from torch.nn import functional as F
from torch.optim.lr_scheduler import LambdaLR
from torchmetrics import MeanMetric

from vocseg.backbones import Backbone
from vocseg.components import factory_from_config, from_config, to_config
from vocseg.data.labels import VOC_CLASSES
from vocseg.errors import VocsegError
from vocseg.losses import CrossEntropy, inverse_frequency, loss_totals
from vocseg.metrics import PAPER_SIZE, Evaluation, Result
from vocseg.schedules import Schedule
from vocseg.state_dicts import check_fits

DecoderCallable = Callable[[list[int], list[int], int], nn.Module]
LOGITS_AT_ONCE = 64_000_000
default_optimizer = partial(torch.optim.Adam, lr=1e-3)


class SegmentationTask(L.LightningModule):
    """A backbone and a decoder, and how they are trained and scored.

    Checkpoints describe themselves: ``SegmentationTask.load_from_checkpoint(path)`` needs nothing else, as long as each
    component could be recorded (see :mod:`vocseg.components`); one that could not is passed again.

    Batches are ``{"image": float32 [B, 3, H, W], "mask": int64 [B, H, W]}``, labels 0..C-1 and 255 = void, or a plain
    ``(image, mask)``. Evaluation batches may carry ``original_mask`` (a list of the untouched masks at the photographs'
    own sizes), ``input_size`` ([B, 2], what of each image is no padding) and ``index`` (places in the split's list).

    Args:
        backbone: a module with ``channels``, ``strides`` and ``forward(image) -> list of features``, shallow to deep.
        decoder: makes the decoder from ``(channels, strides, num_classes)``: a class, a ``functools.partial`` of one,
            or the finished module.
        class_names: one name per class, in the order of the labels.
        loss: a module ``(logits, mask) -> scalar``; cross-entropy over valid pixels if None.
        optimizer: makes the optimizer from parameters, ``functools.partial(torch.optim.AdamW, lr=1e-3)`` for one; Adam
            at 1e-3 if None.
        backbone_lr: learning rate of the backbone where it differs from the optimizer's.
        schedule: how the rates change over the run; constant if None.
        channels_last: keep images and weights in torch's channels-last memory format, which is faster on CPUs and on
            GPUs with tensor cores and changes no result beyond rounding.

    Attributes:
        results: the last :class:`vocseg.metrics.Result` of ``val`` and ``test``.
    """

    def __init__(
        self,
        backbone: Backbone | nn.Module,
        decoder: DecoderCallable,
        class_names: Sequence[str] = VOC_CLASSES,
        loss: nn.Module | None = None,
        optimizer: OptimizerCallable | None = None,
        backbone_lr: float | None = None,
        schedule: Schedule | None = None,
        channels_last: bool = True,
    ) -> None:
        super().__init__()
        self.class_names = list(class_names)
        self.save_hyperparameters(
            {
                "backbone": to_config(backbone),
                "decoder": to_config(decoder, skip=3),
                "class_names": self.class_names,
                "loss": to_config(loss),
                "optimizer": to_config(optimizer),
                "backbone_lr": backbone_lr,
                "schedule": to_config(schedule),
                "channels_last": channels_last,
            }
        )
        # a checkpoint hands over the descriptions themselves: from_config() turns them into components or factories
        self.backbone = from_config(backbone, "backbone", nn.Module)
        decoder = factory_from_config(decoder, "decoder", nn.Module)
        if not isinstance(decoder, nn.Module):
            decoder = decoder(list(self.backbone.channels), list(self.backbone.strides), len(self.class_names))
        self.decoder = decoder
        self.loss = from_config(loss, "loss", nn.Module) or CrossEntropy()
        self.optimizer = factory_from_config(optimizer, "optimizer", torch.optim.Optimizer) or default_optimizer
        if hasattr(self.loss, "prepare"):
            self.loss.prepare(len(self.class_names))
        self.backbone_lr = backbone_lr
        self.schedule = from_config(schedule, "schedule", Schedule) or Schedule()
        self.memory_format = torch.channels_last if channels_last else torch.contiguous_format
        self.to(memory_format=self.memory_format)
        self.results: dict[str, Result] = {}
        self.predict_probabilities = False
        self._group_settings: list[dict[str, Any]] = []
        self._loaded_steps = 0
        self._data_settings: dict[str, Any] = {}
        self.train_loss = MeanMetric()
        self._evaluations = {stage: Evaluation(len(self.class_names)) for stage in ("val", "test")}

    def forward(self, image: Tensor) -> Tensor:
        """Computes the logits of images of any size.

        An image that the backbone's stride does not divide is padded on the right and at the bottom, and its logits are
        cropped back: logit (i, j) describes pixel (i, j).

        Args:
            image: float [B, 3, H, W], normalised.

        Returns:
            float32 [B, C, H, W].
        """
        height, width = image.shape[-2:]
        stride = max(self.backbone.strides)
        padded = F.pad(image, (0, -width % stride, 0, -height % stride)).contiguous(memory_format=self.memory_format)
        trains = any(parameter.requires_grad for parameter in self.backbone.parameters())
        with torch.set_grad_enabled(torch.is_grad_enabled() and trains):
            features = self.backbone(padded)
        return resize(self.decoder(features).float(), padded.shape[-2:])[..., :height, :width]

    def setup(self, stage: str) -> None:
        """Remembers how the data prepares images, for :meth:`segment`."""
        self._data_settings = dict(getattr(self.trainer.datamodule, "hparams", None) or self._data_settings)

    def on_fit_start(self) -> None:
        """Reads the backbone's pretrained weights and counts the classes if a new training starts here."""
        if self.trainer.ckpt_path is not None:  # known only now, not yet in setup()
            return
        if hasattr(self.backbone, "load_pretrained"):
            self.backbone.load_pretrained()
        if getattr(self.loss, "counts_classes", False):
            self._count_classes()

    def on_train_epoch_start(self) -> None:
        """Begins the mean of the epoch's losses anew; not called where an epoch goes on from a checkpoint."""
        self.train_loss.reset()

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        """One batch's loss, a float scalar."""
        image, mask = _image_and_mask(batch)
        loss = self.loss(self(image), mask)
        self.train_loss.update(loss.detach(), len(image))
        self.log("train/loss", self.train_loss, on_step=False, on_epoch=True)
        self.log("loss", loss, prog_bar=True, logger=False, batch_size=len(image))
        return loss

    def validation_step(self, batch: Any, batch_idx: int) -> dict[int, Tensor]:
        """Adds a batch to the validation figures; returns its label maps, int64 [H, W], by place in the list."""
        return self._evaluate(batch, self._evaluations["val"])

    def test_step(self, batch: Any, batch_idx: int) -> dict[int, Tensor]:
        """Adds a batch to the test figures; returns its label maps, int64 [H, W], by place in the list."""
        return self._evaluate(batch, self._evaluations["test"])

    def on_validation_epoch_end(self) -> None:
        """Logs ``val/...``."""
        self._finish("val")

    def on_test_epoch_end(self) -> None:
        """Logs ``test/...``."""
        self._finish("test")

    def predict_step(self, batch: Any, batch_idx: int) -> list[Tensor]:
        """The label map of each image, uint8 [H, W], at ``original_size`` if the batch has it, else the input's.

        Where ``predict_probabilities`` is set, the class probabilities instead, float32 [C, H, W].
        """
        image = batch["image"] if isinstance(batch, dict) else batch[0] if isinstance(batch, list | tuple) else batch
        extras = batch if isinstance(batch, dict) else {}
        maps: dict[int, Tensor] = {}
        for rows, part in parts_of_one_size(image, extras.get("input_size")):
            for row, scores in zip(rows, self(part), strict=True):
                size = extras.get("original_size", {row: part.shape[-2:]})[row]
                if self.predict_probabilities:
                    maps[row] = resize(scores[None].contiguous(), [int(side) for side in size])[0].softmax(0)
                else:
                    maps[row] = label_map(scores, size).to(torch.uint8)
        return [maps[row] for row in range(len(image))]

    @torch.no_grad()
    def segment(self, image: Any) -> np.ndarray:
        """Segments one photograph, prepared as the images were that this task was evaluated on.

        Args:
            image: a path, a PIL image, or an array, uint8 [H, W, 3] (RGB) or [H, W] (grey).

        Returns:
            Its label map, uint8 [H, W].

        Raises:
            VocsegError: it cannot be read, or is no such array.
        """
        from vocseg.data.files import as_rgb
        from vocseg.data.transforms import EVAL_PIPELINES, Pipeline, make_transforms

        pixels = as_rgb(image)
        data = self._data_settings
        transforms = []  # evaluated on somebody else's data: at the photograph's own size
        if {"eval_transforms", "image_size"} <= set(data):
            transforms = make_transforms(
                data["eval_transforms"], EVAL_PIPELINES, tuple(data["image_size"]), "eval_transforms"
            )
        tensor = Pipeline(transforms, len(self.class_names))(pixels)["image"]
        was_training = self.training
        self.eval()
        scores = self(tensor[None].to(self.device))[0]
        self.train(was_training)
        return label_map(scores, pixels.shape[:2]).to(torch.uint8).cpu().numpy()

    def configure_optimizers(self) -> dict[str, Any]:
        """The optimizer over what trains, the backbone in a group of its own, and the schedule."""
        groups = self._groups()
        if not groups:
            raise VocsegError("Nothing is left to train: backbone and decoder are both frozen.")
        optimizer = self.optimizer(groups)
        self._group_settings = [
            {name: value for name, value in group.items() if name != "params"} for group in optimizer.param_groups
        ]
        return {"optimizer": optimizer, "lr_scheduler": self.schedule.attach(optimizer, self.trainer)}

    def on_train_start(self) -> None:
        """Gives a resumed optimizer the rates and the rest that are wanted now: its checkpoint may know others."""
        schedule = self.lr_schedulers()
        if self.trainer.ckpt_path is None or not self._group_settings or not isinstance(schedule, LambdaLR):
            return
        for place, wanted in enumerate(self._group_settings):
            rate = wanted["lr"] * schedule.lr_lambdas[place](schedule.last_epoch)  # as the schedule itself reckons it
            schedule.optimizer.param_groups[place].update({**wanted, "lr": rate, "initial_lr": wanted["lr"]})
            schedule.base_lrs[place] = wanted["lr"]

    @property
    def trained_steps(self) -> int:
        """Optimizer steps that these weights have seen, here or before they were loaded from a checkpoint."""
        return max(self.global_step, self._loaded_steps)

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Adds the mean of this epoch's losses so far."""
        checkpoint["train_loss"] = {name: value.cpu() for name, value in self.train_loss.metric_state.items()}

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Refuses a checkpoint of other classes or of another network, in words."""
        for name, value in checkpoint.get("train_loss", {}).items():
            setattr(self.train_loss, name, value.to(self.device))
        self._loaded_steps = int(checkpoint.get("global_step", 0))
        self._data_settings = dict(checkpoint.get(L.LightningDataModule.CHECKPOINT_HYPER_PARAMS_KEY) or {})
        recorded = (checkpoint.get(self.CHECKPOINT_HYPER_PARAMS_KEY) or {}).get("class_names")
        if recorded is not None and list(recorded) != self.class_names:
            raise VocsegError(
                f"The checkpoint was trained on {len(recorded)} classes ({_some(recorded)}), but the data has "
                f"{len(self.class_names)} ({_some(self.class_names)})."
            )
        check_fits(checkpoint["state_dict"], self.state_dict(), "The checkpoint", "the network as configured")
        if self._trainer is not None and self._trainer.state.fn == "fit":
            self._check_optimizer(checkpoint)

    def _groups(self) -> list[dict[str, Any]]:
        """The optimizer's parameter groups: of each part what trains, if anything does."""
        groups = []
        for name, module in (("backbone", self.backbone), ("decoder", self.decoder), ("loss", self.loss)):
            parameters = [parameter for parameter in module.parameters() if parameter.requires_grad]
            if parameters:
                groups.append({"params": parameters, "name": name})
                if name == "backbone" and self.backbone_lr is not None:
                    groups[-1]["lr"] = self.backbone_lr
        return groups

    def _check_optimizer(self, checkpoint: dict[str, Any]) -> None:
        """Refuses to go on with the state of another optimizer, or of other parameters."""
        described = (checkpoint.get(self.CHECKPOINT_HYPER_PARAMS_KEY) or {}, self.hparams)
        paths = [(each.get("optimizer") or {}).get("class_path", "torch.optim.Adam") for each in described]
        if paths[0].rpartition(".")[2] != paths[1].rpartition(".")[2]:
            raise VocsegError(
                f"The checkpoint was trained with {paths[0]}, but the configured optimizer is {paths[1]}: a resumed "
                "run goes on with its own."
            )
        trained = [group for state in checkpoint.get("optimizer_states", []) for group in state["param_groups"]]
        before, now = (
            ", ".join(f"{group.get('name')} {len(group['params'])}" for group in groups)
            for groups in (trained, self._groups())
        )
        ours = trained and all("name" in group for group in trained)  # not those of a subclass, or of a callback
        if ours and before != now:
            raise VocsegError(
                f"The checkpoint was training other parameters ({before}) than are to be trained now ({now}): what is "
                "frozen stays so in a resumed run."
            )

    def _count_classes(self) -> None:
        # counted by one process for all
        counts = getattr(self.trainer.datamodule, "class_counts", None) if self.trainer.is_global_zero else None
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
        self.loss.class_weights.copy_(inverse_frequency(counts))

    def _evaluate(self, batch: Any, evaluation: Evaluation) -> dict[int, Tensor]:
        image, mask = _image_and_mask(batch)
        extras = batch if isinstance(batch, dict) else {}
        targets = extras.get("original_mask", mask)
        seen, rank, world = len(evaluation.matrices), self.trainer.global_rank, self.trainer.world_size
        places = range(seen * world + rank, (seen + len(image)) * world + rank, world)  # as samplers deal them out
        indices = [int(index) for index in extras.get("index", places)]
        predictions: dict[int, Tensor] = {}
        for rows, part in parts_of_one_size(image, extras.get("input_size")):
            logits = self(part)
            height, width = part.shape[-2:]
            evaluation.update_loss(*loss_totals(self.loss, logits, mask[rows, :height, :width]))
            for row, scores in zip(rows, logits, strict=True):
                prediction, squashed = (label_map(scores, size) for size in (targets[row].shape[-2:], PAPER_SIZE))
                evaluation.update_image(prediction, targets[row], indices[row], squashed)
                predictions[row] = prediction
        return {indices[row]: predictions[row] for row in range(len(image))}

    def _finish(self, stage: str) -> None:
        evaluation = self._evaluations[stage]
        result = evaluation.compute(self.device)
        evaluation.reset()
        self.results[stage] = result
        if self.trainer.state.fn != "fit":
            self.log("step", float(max(self.trained_steps - 1, 0)))  # else Lightning would log at step 0
        figures = {"loss": result.loss, "pixel_accuracy": result.pixel_accuracy}
        figures |= {f"paper_inferred/{name}": value for name, value in result.paper_inferred().items()}
        iou = dict(zip(self.class_names, result.iou, strict=True))
        # a class that occurs in neither prediction nor target has no IoU
        figures |= {f"iou/{name}": value for name, value in iou.items() if not math.isnan(value)}
        # all processes have the same figures already; sync_dist tells Lightning not to warn
        self.log(f"{stage}/miou", result.miou, prog_bar=True, sync_dist=True)
        self.log_dict({f"{stage}/{name}": value for name, value in figures.items()}, sync_dist=True)


def parts_of_one_size(image: Tensor, input_sizes: Any) -> Iterator[tuple[list[int], Tensor]]:
    """Takes a batch apart into images of equal size, without the padding that made them one batch.

    An image's logits must not depend on what else is in its batch.

    Args:
        image: float [B, 3, H, W].
        input_sizes: [B, 2] height and width of what is no padding, or None: nothing is.

    Yields:
        Places in the batch, and their images [b, 3, h, w].
    """
    rows_of: dict[tuple[int, int], list[int]] = {}
    for row in range(len(image)):
        height, width = image.shape[-2:] if input_sizes is None else input_sizes[row]
        rows_of.setdefault((int(height), int(width)), []).append(row)
    for (height, width), rows in rows_of.items():
        yield rows, image[rows, :, :height, :width]


def label_map(scores: Tensor, size: Sequence[int]) -> Tensor:
    """Resizes one image's logits, float [C, h, w], to ``size`` and takes the argmax: int64 [H, W]."""
    height, width = (int(side) for side in size)
    # of a large photograph some classes at a time: all of them at 6000x4000 would take 2 GB
    at_once = max(LOGITS_AT_ONCE // (height * width), 1)
    best = labels = None
    for first in range(0, len(scores), at_once):
        # over a leading axis that is contiguous, max is several times faster than argmax
        some, places = resize(scores[None, first : first + at_once].contiguous(), (height, width))[0].max(0)
        if best is None:
            best, labels = some, places
        else:
            labels = torch.where(some > best, places + first, labels)
            best = torch.maximum(best, some)
    return labels


def resize(logits: Tensor, size: Sequence[int]) -> Tensor:
    """Bilinear, pixel centres aligned; returns its argument when the size is right already."""
    if tuple(logits.shape[-2:]) == tuple(size):
        return logits
    return F.interpolate(logits, size=tuple(size), mode="bilinear", align_corners=False)


def _image_and_mask(batch: Any) -> tuple[Tensor, Tensor]:
    image, mask = (batch["image"], batch["mask"]) if isinstance(batch, dict) else batch
    return image, mask.long()


def _some(names: Sequence[str]) -> str:
    return ", ".join(names[:4]) + (", ..." if len(names) > 4 else "")
